"""Section 1: the softmax policy gradient and the landscape it climbs (Mei et al., 2005.06392)."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from etr import exact
from etr.reproduce.base import Measured, Statement, Target, exactly, one_of_many, printed
from toy_envs import ExactModel

SOURCE = "2005.06392"


def random_states(arms: int, count: int, seed: int) -> tuple[Tensor, Tensor, Generator]:
    """Logits ~ N(0, 1) and rewards ~ U(0, 1), `[count, 1, 1, arms]` and `[count, arms]`."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 1, 1, arms, generator=rng, dtype=torch.float64)
    return logits, torch.rand(count, arms, generator=rng, dtype=torch.float64), rng


def states_as_prompts(logits: Tensor, rewards: Tensor) -> tuple[Tensor, ExactModel]:
    """Every state as a prompt of one model, so that one call evaluates them all."""
    return logits.squeeze(-3), ExactModel(rewards.shape[-1], 1, rewards)


def gradient_identity() -> list[Measured]:
    """Largest distance between π_a(r_a − π·r) and central differences of J."""
    logits, model = states_as_prompts(*random_states(6, 500, 0)[:2])
    found, h = exact.policy_gradient(logits, model) * model.prompts, 1e-5
    worst = 0.0
    for arm in range(6):
        step = h * torch.eye(6, dtype=torch.float64)[arm]
        up, down = (exact.expected_reward(logits + sign * step, model) for sign in (1, -1))
        worst = max(worst, ((up - down) / (2 * h) - found[:, 0, arm]).abs().max().item())
    return exactly(worst)


def smoothness() -> list[Measured]:
    """The largest share of the bound: over 2 to 10 arms, and in each of 20 searches with three arms."""
    worst = max(float(remainder(arms, seed=arms)) for arms in (2, 3, 5, 10))
    return [*exactly(worst), one_of_many(torch.stack([remainder(3, seed) for seed in range(20)]))]


def remainder(arms: int, seed: int) -> Tensor:
    """Largest |J(z+d) − J(z) − d·∇J| / (5/4 |d|²) over 20 000 random states and steps."""
    states, rewards, rng = random_states(arms, 20_000, seed)
    logits, model = states_as_prompts(2 * states, rewards)
    step = 0.3 * torch.randn(logits.shape, generator=rng, dtype=torch.float64)
    linear = (step * exact.policy_gradient(logits, model)).sum((-2, -1)) * model.prompts
    rise = exact.expected_reward(logits + step, model) - exact.expected_reward(logits, model)
    return ((rise - linear).abs() / (1.25 * step.square().sum((-2, -1)))).max()


def lojasiewicz(arms: int) -> float:
    """Smallest |∇J| / (π(a*)(r* − π·r)) over 20 000 random states."""
    logits, model = states_as_prompts(*random_states(arms, 20_000, arms)[:2])
    length = exact.policy_gradient(logits, model).norm(dim=(-2, -1)) * model.prompts
    best, at = model.success.max(-1)
    chance = logits[:, 0].softmax(-1).gather(-1, at.unsqueeze(-1)).squeeze(-1)
    return float((length / (chance * (best - exact.expected_reward(logits, model)))).min())


def sharpened() -> list[Measured]:
    """The same divided by √(K/(K−1)), which the zero sum of the gradient adds."""
    return exactly(min(lojasiewicz(arms) / math.sqrt(arms / (arms - 1)) for arms in (2, 3, 5, 10)))


LANDSCAPE = (
    Statement(
        "gradient", 1, "Softmax policy gradient: ∂(π·r)/∂θ_a = π_a (r_a − π·r).", SOURCE, "third-party",
        (Target("largest error against central differences", 1e-9, relation="<="),), gradient_identity,
    ),
    Statement(
        "smoothness", 1, "With rewards in [0, 1] the objective is 5/2-smooth.", SOURCE, "reconstructed",
        (Target("largest remainder as a share of the bound", 1.0, relation="<="),
         *printed({"the same in one search of 20 000": "0.061"})), smoothness,
        note="The constant is from memory. How the earlier search drew was not recorded; guessed: three arms, logits "
        "~ N(0, 4), rewards ~ U(0, 1), steps ~ N(0, .09). Our interval is where 95 % of such searches end.",
    ),
    Statement(
        "lojasiewicz", 1, "Łojasiewicz: |∇J| ≥ π(a*) (r* − π·r).", SOURCE, "reconstructed",
        (Target("smallest ratio", 1.0, relation=">="), *printed({"smallest ratio, K = 6": "1.10"})),
        lambda: exactly(min(lojasiewicz(arms) for arms in (2, 3, 5, 10)), lojasiewicz(6)),
        note="K = 6 was guessed: the smallest possible ratio there is √(6/5) = 1.095.",
    ),
    Statement(
        "lojasiewicz-sharp", 1, "Sharper, derived here: |∇J| ≥ √(K/(K−1)) π(a*) (r* − π·r), as a gradient sums to 0.",
        "this project", "reconstructed", (Target("smallest ratio", 1.0, 1e-9, ">="),), sharpened,
        note="With two arms it is an equality, so rounding needs a tolerance.",
    ),
)  # fmt: skip
