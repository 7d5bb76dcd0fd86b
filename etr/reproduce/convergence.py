"""Section 1: the softmax policy gradient with exact gradients (Mei, Xiao, Szepesvári, Schuurmans, 2005.06392)."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Generator, Tensor

from etr import exact
from etr.reproduce.base import Measured, Statement, Target, exactly, published
from toy_envs import ExactModel

SOURCE = "2005.06392"
ETA = 2 / 5  # the paper's step, 1/β for the smoothness β = 5/2
THREE = (1.0, 0.9, 0.1)
TEN = tuple(1 - i / 9 for i in range(10))
BAD_START = (0.05, 0.01, 0.94)


def bandit(rewards: tuple[float, ...]) -> ExactModel:
    """One prompt whose arms are right with these probabilities."""
    return ExactModel(len(rewards), 1, torch.tensor([rewards], dtype=torch.float64))


@cache
def gaps(rewards: tuple[float, ...], start: tuple[float, ...], steps: int) -> Tensor:
    """r* − π_t·r of gradient ascent with exact gradients at t = 1 (the start), 2, ..., `steps`; float64 `[steps]`."""
    model = bandit(rewards)
    logits = torch.tensor(start, dtype=torch.float64).log().reshape(1, 1, -1)
    values = []
    for _ in range(steps):
        values.append(exact.expected_reward(logits, model)[0])
        logits = logits + ETA * exact.policy_gradient(logits, model)
    return model.optimal_value - torch.stack(values)


def uniform(arms: int) -> tuple[float, ...]:
    return (1 / arms,) * arms


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
    """Largest |J(z+d) − J(z) − d·∇J| / (5/4 |d|²) over 20 000 random states and steps, for each number of arms."""
    worst = 0.0
    for arms in (2, 3, 5, 10):
        states, rewards, rng = random_states(arms, 20_000, arms)
        logits, model = states_as_prompts(states, rewards)
        step = torch.randn(logits.shape, generator=rng, dtype=torch.float64)
        linear = (step * exact.policy_gradient(logits, model)).sum((-2, -1)) * model.prompts
        rise = exact.expected_reward(logits + step, model) - exact.expected_reward(logits, model)
        worst = max(worst, ((rise - linear).abs() / (1.25 * step.square().sum((-2, -1)))).max().item())
    return exactly(worst)


def lojasiewicz(arms: int) -> float:
    """Smallest |∇J| / (π(a*)(r* − π·r)) over 20 000 random states."""
    logits, model = states_as_prompts(*random_states(arms, 20_000, arms)[:2])
    length = exact.policy_gradient(logits, model).norm(dim=(-2, -1)) * model.prompts
    best, at = model.success.max(-1)
    chance = logits[:, 0].softmax(-1).gather(-1, at.unsqueeze(-1)).squeeze(-1)
    return (length / (chance * (best - exact.expected_reward(logits, model)))).min().item()


def sharpened() -> list[Measured]:
    """The same divided by √(K/(K−1)), which the zero sum of the gradient adds."""
    return exactly(min(lojasiewicz(arms) / math.sqrt(arms / (arms - 1)) for arms in (2, 3, 5, 10)))


def rates(steps: int, marks: tuple[int, ...]) -> list[Measured]:
    """Gaps at the marks for K = 3 and K = 10 from a uniform start."""
    curves = [gaps(rewards, uniform(len(rewards)), steps) for rewards in (THREE, TEN)]
    return exactly(*(curve[t - 1].item() for curve in curves for t in marks))


def long_rates() -> list[Measured]:
    """Gap and t·gap at 10⁵, the largest share of the upper bound 5K²/t, and the slope from 10⁴ to 10⁵."""
    found = []
    for rewards in (THREE, TEN):
        curve = gaps(rewards, uniform(len(rewards)), 100_000)
        times = torch.arange(1, 100_001, dtype=torch.float64)
        share = (times * curve / (5 * len(rewards) ** 2)).max()
        least = min(a - b for a, b in zip(rewards, rewards[1:], strict=False))
        lower = (times * curve * 6 / least**2)[1000:].min()
        slope = (curve[-1] / curve[9_999]).log10()
        found += [curve[-1], 1e5 * curve[-1], share, lower, slope]
    return exactly(*(float(value) for value in found))


def plateau(steps: int, marks: tuple[int, ...]) -> list[Measured]:
    curve = gaps(THREE, BAD_START, steps)
    return exactly(*(curve[t - 1].item() for t in marks))


def half_time() -> list[Measured]:
    """Steps taken until the gap is at most half of the first."""
    curve = gaps(THREE, BAD_START, 10_000)
    return exactly(float((curve <= curve[0] / 2).nonzero()[0, 0]))


def regularised() -> list[Measured]:
    """Ascent on J + τH: the rate at which KL(π ‖ π_τ) falls, early and late, and how far π ends from softmax(r/τ)."""
    tau, model = 0.5, bandit(THREE)
    target = torch.tensor([[THREE]], dtype=torch.float64) / tau
    logits, distances = torch.zeros_like(target), []
    for _ in range(1201):
        distances.append(exact.kl(logits, target, model)[0])
        leaf = logits.requires_grad_()
        value = exact.expected_reward(leaf, model) + tau * exact.entropy(leaf, model)
        logits = (logits + ETA * torch.autograd.grad(value.sum(), leaf)[0]).detach()  # the next point
    logs = torch.stack(distances).detach().log()
    early, late = (logs[300] - logs[200]) / 100, (logs[500] - logs[400]) / 100  # above the rounding of a KL
    final = (logits.softmax(-1) - target.softmax(-1)).abs().sum()
    return exactly(float(early / late), float(late), float(final))


CONVERGENCE = (
    Statement(
        "gradient", 1, "Softmax policy gradient: ∂(π·r)/∂θ_a = π_a (r_a − π·r).", SOURCE, "third-party",
        (Target("largest error against central differences", 0.0, 1e-9, "<="),), gradient_identity,
    ),
    Statement(
        "smoothness", 1, "With rewards in [0, 1] the objective is 5/2-smooth.", SOURCE, "reconstructed",
        (Target("largest remainder as a share of the bound", 1.0, relation="<="),), smoothness,
        note="The constant is from memory. An earlier search found a largest share of 0.061; a maximum over random "
        "draws depends on how they are drawn.",
    ),
    Statement(
        "lojasiewicz", 1, "Łojasiewicz: |∇J| ≥ π(a*) (r* − π·r).", SOURCE, "reconstructed",
        (Target("smallest ratio", 1.0, relation=">="), *published({"smallest ratio, K = 6": 1.10}, 0.005)),
        lambda: exactly(min(lojasiewicz(arms) for arms in (2, 3, 5, 10)), lojasiewicz(6)),
        note="K = 6 was guessed: the smallest possible ratio there is √(6/5) = 1.095.",
    ),
    Statement(
        "lojasiewicz-sharp", 1, "Sharper, derived here: |∇J| ≥ √(K/(K−1)) π(a*) (r* − π·r), as a gradient sums to 0.",
        "this project", "reconstructed", (Target("smallest ratio", 1.0, 1e-9, ">="),), sharpened,
        note="With two arms it is an equality, so rounding needs a tolerance.",
    ),
    Statement(
        "rate", 1, "Uniform start, η = 2/5: the gap falls as 1/t.", SOURCE, "reconstructed",
        published({"K = 3, t = 1e3": 1.83e-3, "K = 3, t = 1e4": 1.69e-4, "K = 10, t = 1e3": 2.58e-3,
                   "K = 10, t = 1e4": 2.29e-4}, relative=0.003),
        lambda: rates(10_000, (1000, 10_000)),
        note="r = (1, .9, .1) and r from 1 to 0 in ten equal steps.",
    ),
    Statement(
        "rate-long", 1, "The same at t = 10⁵: Δ²/(6t) ≤ gap ≤ 5K²/t, slope −1 in log-log.", SOURCE, "reconstructed",
        (
            *published({"K = 3: gap": 1.67e-5, "K = 3: t·gap": 1.67}, relative=0.003),
            Target("K = 3: largest share of 5K²/t", 0.067, relation="<="),
            Target("K = 3: least multiple of Δ²/(6t)", 1.0, relation=">="),
            Target("K = 3: slope", -1.0, 0.01),
            *published({"K = 10: gap": 2.25e-5, "K = 10: t·gap": 2.25}, relative=0.003),
            Target("K = 10: largest share of 5K²/t", 1.0, relation="<="),
            Target("K = 10: least multiple of Δ²/(6t)", 1.0, relation=">="),
            Target("K = 10: slope", -1.0, 0.01),
        ),
        long_rates, quick=False, note="The constants of both bounds are from memory.",
    ),
    Statement(
        "plateau", 1, "From π = (.05, .01, .94) with r = (1, .9, .1) learning stalls first.", SOURCE, "reconstructed",
        (*published({"t = 1": 0.847, "t = 10": 0.826}, 5e-4),
         *published({"t = 100": 0.0228, "t = 1e3": 1.44e-3, "t = 1e4": 1.49e-4}, relative=0.0035)),
        lambda: plateau(10_000, (1, 10, 100, 1000, 10_000)),
    ),
    Statement(
        "plateau-long", 1, "The same at t = 10⁵.", SOURCE, "reconstructed", published({"gap": 1.59e-5}, relative=0.0035),
        lambda: plateau(100_000, (100_000,)), quick=False,
    ),
    Statement(
        "plateau-half", 1, "From that start half of the gap is gone at step 35.", SOURCE, "reconstructed",
        (Target("steps taken", 35.0),), half_time,
    ),
    Statement(
        "regularised", 1, "With an entropy bonus τH convergence is linear, O(e^{−ct}), to π ∝ exp(r/τ).", SOURCE,
        "third-party",
        (Target("rate from step 200 / rate from step 400", 1.0, 0.02), Target("change of log KL per step", 0.0, 0.0, "<="),
         Target("distance of the end from softmax(r/τ)", 0.0, 1e-6, "<=")),
        regularised, note="τ = 0.5, η = 2/5, r = (1, .9, .1).",
    ),
)  # fmt: skip
