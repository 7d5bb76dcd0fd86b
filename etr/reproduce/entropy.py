"""Section 2: first-order entropy dynamics: exact identities, and a random reward that does nothing at first order."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

import etr
from etr import exact
from etr.oracles.entropy import entropy_change, entropy_discriminator, sampled_token_push
from etr.oracles.estimator import gradient_moments
from etr.oracles.fisher import natural_gradient
from etr.reproduce.base import Measured, Statement, Target, exactly, mean_with_error, printed, sampled_share
from toy_envs import ExactModel

WORKED = (2.0, 0.0, 0.0, -1.0)
STEP = 1e-5


def entropy(logits: Tensor) -> Tensor:
    """H of softmax rows in nats; kept apart from the oracles, which it checks."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def slope(logits: Tensor, step: Tensor) -> Tensor:
    """Central difference of the entropy along `step`."""
    return (entropy(logits + STEP * step) - entropy(logits - STEP * step)) / (2 * STEP)


def random_rows(count: int, arms: int, seed: int) -> tuple[Tensor, Generator]:
    """Normal logits `[count, arms]`, and the generator that drew them."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, arms, generator=rng, dtype=torch.float64), rng


def covariance() -> list[Measured]:
    """Largest error of the covariance law along random steps, against central differences."""
    logits, rng = random_rows(2000, 8, 0)
    step = torch.randn(logits.shape, generator=rng, dtype=torch.float64)
    return exactly(float((entropy_change(logits, step) - slope(logits, step)).abs().max()))


def gradients() -> list[Measured]:
    """Along the policy gradient and the natural gradient, and how far the latter is from A up to a shift."""
    logits, rng = random_rows(2000, 8, 1)
    model = ExactModel(8, 1, torch.rand(2000, 8, generator=rng, dtype=torch.float64))
    table = logits.unsqueeze(-2)
    advantage = exact.advantages(table, model)[:, 0]
    steps = {"pg": logits.softmax(-1) * advantage, "npg": natural_gradient(table, model)[:, 0]}
    errors = [float((entropy_change(logits, step) - slope(logits, step)).abs().max()) for step in steps.values()]
    difference = steps["npg"] - advantage
    shift = float((difference - difference.mean(-1, keepdim=True)).abs().max())
    return exactly(*errors, shift)


def one_token() -> list[Measured]:
    """Largest error of −S_k, and the number of tokens whose sign is not that of π_k − e^{−H}."""
    logits, _ = random_rows(2000, 6, 2)
    found = entropy_discriminator(logits)
    eye = torch.eye(6, dtype=torch.float64)
    numeric = torch.stack([slope(logits, unit) for unit in eye], -1)
    above = logits.softmax(-1) > (-entropy(logits)).exp().unsqueeze(-1)
    return exactly(float((found + numeric).abs().max()), float(((found > 0) != above).sum()))


def sampled_token() -> list[Measured]:
    """Largest error of the push of a sampled token, and of its mean under the policy, which is 0."""
    logits, _ = random_rows(2000, 6, 3)
    found, probs = sampled_token_push(logits), logits.softmax(-1)
    numeric = torch.stack([slope(logits, unit - probs) for unit in torch.eye(6, dtype=torch.float64)], -1)
    return exactly(float((found - numeric).abs().max()), float((probs * found).sum(-1).abs().max()))


def worked_number() -> list[Measured]:
    """Every number of the worked example: probabilities, entropy, pushes, their mean and the threshold e^{−H}."""
    logits = torch.tensor(WORKED, dtype=torch.float64)
    probs, pushes = logits.softmax(-1), entropy_discriminator(logits)
    height = entropy(logits)
    mean = (probs * pushes).sum()
    numbers = torch.cat([probs[[0, 1, 3]], height[None], pushes[[0, 1, 3]], mean[None], (-height).exp()[None]])
    return exactly(*torch.cat([numbers, sampled_token_push(logits)[[0, 1, 3]]]).tolist())


def random_reward() -> list[Measured]:
    """|E g| of GRPO's first update when the verifier flips a coin, every group of 4 enumerated."""
    coin = ExactModel(4, 1, torch.full((1, 4), 0.5, dtype=torch.float64))
    logits = torch.tensor([[WORKED]], dtype=torch.float64)
    moments = gradient_moments(etr.get("grpo"), coin, logits, 4)
    return exactly(float(moments.mean.abs().max()), float(moments.covariance_trace))


def rising_share() -> list[Measured]:
    """Share of random states with binary arms, not all equal, in which the exact policy gradient raises the entropy."""
    shares = []
    for arms in (3, 5, 10):
        logits, rng = random_rows(100_000, arms, arms)
        model = ExactModel(arms, 1, (torch.rand(logits.shape, generator=rng) < 0.5).double())
        mixed = model.success.amin(-1) != model.success.amax(-1)
        table = logits.unsqueeze(-2)
        rise = entropy_change(logits, exact.policy_gradient(table, model)[:, 0]) > 0
        shares.append(rise[mixed])
    return [mean_with_error(torch.cat(shares).double())] * 2


ENTROPY = (
    Statement(
        "covariance", 2, "A logit step dz changes the entropy by −Cov_{a∼π}(log π_a, dz_a) + O(|dz|²).", "2505.22617",
        "third-party", (Target("largest error against central differences", 1e-7, relation="<="),), covariance,
    ),
    Statement(
        "covariance-gradients", 2, "Policy gradient: dz = ηπA. Natural gradient: dz = ηA (up to a shift).",
        "2505.22617", "third-party",
        (Target("largest error, policy gradient", 1e-7, relation="<="),
         Target("largest error, natural gradient", 1e-7, relation="<="),
         Target("natural gradient minus A, spread over arms", 1e-12, relation="<=")), gradients,
    ),
    Statement(
        "one-token", 2, "dz = ε e_k changes H by −ε S_k, S_k = π_k (H + log π_k); the sign flips at π_k = e^{−H}.",
        "2602.03392", "third-party",
        (Target("largest error", 1e-7, relation="<="), Target("tokens of the wrong sign", 0.0, relation="<=")),
        one_token,
    ),
    Statement(
        "sampled-token", 2, "dz = α(e_k − π) changes H by −α(S_k − E S), which has mean 0 under π.", "2602.03392",
        "third-party",
        (Target("largest error", 1e-7, relation="<="), Target("largest mean", 1e-14, relation="<=")), sampled_token,
    ),
    Statement(
        "worked-number", 2, "Logits (2, 0, 0, −1): probabilities, entropy, S and the change of H per sampled token.",
        "2602.03392, worked here", "reconstructed",
        printed({"π_1": "0.757313", "π_2 = π_3": "0.102491", "π_4": "0.037704", "H": "0.801056", "S_1": "0.396134",
                   "S_2 = S_3": "-0.151372", "S_4": "-0.093391", "E S": "0.265448", "e^{−H}": "0.448855",
                   "dH_1": "-0.130686", "dH_2 = dH_3": "0.416819", "dH_4": "0.358839"}), worked_number,
        note="dH_3 equals dH_2: the two tokens have one logit.",
    ),
    Statement(
        "random-reward-first-order", 2, "A reward that ignores the action moves the entropy by nothing at first order.",
        "2602.03392", "third-party",
        (Target("|E g| of GRPO's first update, G = 4", 1e-14, relation="<="),
         Target("its variance", 0.01, relation=">=")),
        random_reward, note="Every group enumerated with the real loss. A single group does move the policy.",
    ),
    Statement(
        "rising-entropy", 2, "Over random states with binary arms the exact policy gradient raises entropy in 52 %.",
        "this project", "reconstructed",
        (sampled_share("share (n = 2 000 assumed)", 0.52, 2000), Target("share, by symmetry", 0.5)),
        rising_share,
        note="By symmetry the exact value is 1/2: turning every fair reward round turns the gradient round. 52 % was "
        "counted in random states, so it is uncertain by 1.96 √(p(1 − p)/n). Neither n nor how the states were drawn "
        "is recorded beside it. We take n = 2 000, as in the section's other check (above 2 090 the two would differ), "
        "logits ~ N(0, 1) and fair binary arms that are not all equal. Collapse is no law of every state.",
    ),
)  # fmt: skip
