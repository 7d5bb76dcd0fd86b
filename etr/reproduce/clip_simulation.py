"""Section 4, simulated: coin-flip rewards, six clip ranges, and the entropy that is left."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch
from torch import Tensor

import etr
from etr import exact
from etr.batch import Batch
from etr.objective import Objective
from etr.reproduce.base import Z95, Measured, Statement, Target, mean_with_error, printed
from toy_envs import ExactModel

PROMPTS, ARMS, GROUP, EPOCHS, ITERATIONS, RATE = 16, 8, 16, 4, 300, 0.35
START_ENTROPY = 1.735
NO_UPPER = 1e9
# name: (ε_low, ε_high, published end entropy). 1 − ε_low = 0 is no lower bound: a ratio is never negative.
RANGES: dict[str, tuple[float, float, float]] = {
    "high only": (1.0, 0.2, 0.826),
    "symmetric": (0.2, 0.2, 0.965),
    "no clip": (1.0, NO_UPPER, 1.066),
    "clip-higher": (0.2, 0.28, 1.109),
    "low only": (0.2, NO_UPPER, 1.152),
    "tight low": (0.1, 0.2, 1.483),
}
PUBLISHED_ERROR = Z95 * 0.03  # "s.e. about .03"
COIN = ExactModel(ARMS, 1, torch.full((PROMPTS, ARMS), 0.5, dtype=torch.float64))


def start_logits(seeds: int, rng: torch.Generator) -> Tensor:
    """Normal logits, scaled (by bisection) so that the mean entropy is the published start, `[seeds, P, 1, K]`."""
    normal = torch.randn(seeds, PROMPTS, 1, ARMS, generator=rng, dtype=torch.float64)
    low, high = 0.0, 5.0
    for _ in range(50):
        scale = (low + high) / 2
        above = float(exact.entropy(scale * normal, COIN).mean()) > START_ENTROPY
        low, high = (scale, high) if above else (low, scale)
    return low * normal


def epoch(objective: Objective, logits: Tensor, batch: Batch, arms: Tensor) -> Tensor:
    """One full-batch step of SGD; each bandit takes the gradient of its own group's mean."""
    leaf = logits.requires_grad_()
    current = dataclasses.replace(batch, log_probs=taken(leaf, arms))
    loss = etr.policy_loss(objective, current, check=False).loss.sum() * PROMPTS
    return (logits - RATE * torch.autograd.grad(loss, leaf)[0]).detach()  # the next point


def taken(logits: Tensor, arms: Tensor) -> Tensor:
    """log π of the sampled arms, `[seeds, P·G, 1]`."""
    return logits.squeeze(-2).log_softmax(-1).gather(-1, arms).flatten(-2).unsqueeze(-1)


@cache
def end_entropies(seeds: int) -> Tensor:
    """Mean entropy over the bandits at the start and after training with each range, `[1 + ranges, seeds]`.

    All ranges see the same starts, uniforms and coin flips, so that their differences are paired.
    """
    rng = torch.Generator().manual_seed(0)
    start = start_logits(seeds, rng)
    objectives = [etr.get("grpo", eps_low=low, eps_high=high) for low, high, _ in RANGES.values()]
    policies = [start.clone() for _ in objectives]
    ids = torch.arange(PROMPTS).repeat_interleave(GROUP)
    shape = (seeds, PROMPTS, GROUP, 1)
    for _ in range(ITERATIONS):
        uniforms = torch.rand(shape, generator=rng, dtype=torch.float64)
        rewards = (torch.rand(shape[:-1], generator=rng, dtype=torch.float64) < 0.5).double().flatten(-2)
        for i, objective in enumerate(objectives):
            arms = COIN.sample(policies[i], uniforms).squeeze(-1)
            old = taken(policies[i], arms)
            mask = torch.ones_like(old, dtype=torch.bool)
            batch = Batch(old, old, mask, objective.advantage(rewards, ids))
            for _ in range(EPOCHS):
                policies[i] = epoch(objective, policies[i], batch, arms)
    return torch.stack([exact.entropy(logits, COIN).mean(-1) for logits in (start, *policies)])


def start_and_ends(seeds: int) -> list[Measured]:
    """Entropy at the start, and at the end of each range of `RANGES` with its standard error, nats."""
    ends = end_entropies(seeds)
    return [Measured(float(ends[0].mean())), *(mean_with_error(end) for end in ends[1:])]


def order(seeds: int) -> list[Measured]:
    """Paired differences along the published order, and the fall without any clip."""
    ends = dict(zip(("start", *RANGES), end_entropies(seeds), strict=True))
    pairs = [("symmetric", "high only"), ("no clip", "symmetric"), ("low only", "no clip"),
             ("clip-higher", "symmetric"), ("tight low", "low only"), ("start", "no clip")]  # fmt: skip
    return [mean_with_error(ends[more] - ends[less]) for more, less in pairs]


ORDER = (
    "symmetric − high only", "no clip − symmetric", "low only − no clip", "clip-higher − symmetric",
    "tight low − low only", "start − no clip",
)  # fmt: skip
ENDS = (*printed({"start": "1.735"}), *(Target(name, end, PUBLISHED_ERROR) for name, (_, _, end) in RANGES.items()))
SETTINGS = (
    "16 bandits of 8 arms, G 16, GRPO's z-scores, 4 epochs of plain SGD at 0.35 on the sum over bandits of each "
    "group's mean, 300 steps. Guessed: normal start logits, scaled to the start entropy; the sum over bandits."
)

CLIP_SIMULATION = (
    Statement(
        "clip-entropies", 4, "End entropy under coin-flip rewards for six clip ranges, from 1.735 nats.",
        "simulation of this project", "reconstructed",
        ENDS,
        lambda: start_and_ends(20), note=f"20 seeds. {SETTINGS}",
    ),
    Statement(
        "clip-entropies-long", 4, "The same with 128 seeds.", "simulation of this project", "reconstructed", ENDS,
        lambda: start_and_ends(128), quick=False,
        note="The given numbers keep the uncertainty of their own 20 seeds.",
    ),
    Statement(
        "clip-order", 4, "Clip-high lowers entropy and clip-low raises it: high only < symmetric < no clip < low only, "
        "and clip-higher > symmetric. Without a clip entropy falls too, by the drift of sampling.",
        "2509.26114, 2506.10947", "third-party", tuple(Target(name, 0.0, relation=">=") for name in ORDER),
        lambda: order(128), quick=False, note=f"128 seeds, paired differences in nats. {SETTINGS}",
    ),
)  # fmt: skip
