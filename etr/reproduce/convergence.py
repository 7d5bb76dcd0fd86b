"""Section 1, continued: how fast ascent with exact gradients converges (Mei et al., 2005.06392)."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from torch import Tensor

from etr import exact
from etr.reproduce.base import Measured, Statement, Target, exactly, printed
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
    """The uniform policy over `arms` arms."""
    return (1 / arms,) * arms


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
        least = min(a - b for a, b in pairwise(rewards))
        lower = (times * curve * 6 / least**2)[1000:].min()
        slope = (curve[-1] / curve[9_999]).log10()
        found += [curve[-1], 1e5 * curve[-1], share, lower, slope]
    return exactly(*(float(value) for value in found))


def plateau(steps: int, marks: tuple[int, ...]) -> list[Measured]:
    """Gaps at the marks for K = 3 from the bad start."""
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
        "rate", 1, "Uniform start, η = 2/5: the gap falls as 1/t.", SOURCE, "reconstructed",
        printed({"K = 3, t = 1e3": "1.83e-3", "K = 3, t = 1e4": "1.69e-4", "K = 10, t = 1e3": "2.58e-3",
                 "K = 10, t = 1e4": "2.29e-4"}),
        lambda: rates(10_000, (1000, 10_000)),
        note="r = (1, .9, .1) and r from 1 to 0 in ten equal steps.",
    ),
    Statement(
        "rate-long", 1, "The same at t = 10⁵: Δ²/(6t) ≤ gap ≤ 5K²/t, slope −1 in log-log.", SOURCE, "reconstructed",
        (
            *printed({"K = 3: gap": "1.67e-5", "K = 3: t·gap": "1.67"}),
            Target("K = 3: largest share of 5K²/t", 0.067, relation="<="),
            Target("K = 3: least multiple of Δ²/(6t)", 1.0, relation=">="),
            Target("K = 3: slope", -1.0, 0.01),
            *printed({"K = 10: gap": "2.25e-5", "K = 10: t·gap": "2.25"}),
            Target("K = 10: largest share of 5K²/t", 1.0, relation="<="),
            Target("K = 10: least multiple of Δ²/(6t)", 1.0, relation=">="),
            Target("K = 10: slope", -1.0, 0.01),
        ),
        long_rates, quick=False, note="The constants of both bounds are from memory.",
    ),
    Statement(
        "plateau", 1, "From π = (.05, .01, .94) with r = (1, .9, .1) learning stalls first.", SOURCE, "reconstructed",
        printed({"t = 1": "0.847", "t = 10": "0.826", "t = 100": "0.0228", "t = 1e3": "1.44e-3", "t = 1e4": "1.49e-4"}),
        lambda: plateau(10_000, (1, 10, 100, 1000, 10_000)),
    ),
    Statement(
        "plateau-long", 1, "The same at t = 10⁵.", SOURCE, "reconstructed",
        printed({"gap": "1.59e-5"}), lambda: plateau(100_000, (100_000,)), quick=False,
    ),
    Statement(
        "plateau-half", 1, "From that start half of the gap is gone at step 35.", SOURCE, "reconstructed",
        (Target("steps taken", 35.0),), half_time,
    ),
    Statement(
        "regularised", 1, "With an entropy bonus τH convergence is linear, O(e^{−ct}), to π ∝ exp(r/τ).", SOURCE,
        "third-party",
        (Target("rate from step 200 / rate from step 400", 1.0, 0.02),
         Target("change of log KL per step", 0.0, relation="<="),
         Target("distance of the end from softmax(r/τ)", 1e-6, relation="<=")),
        regularised, note="τ = 0.5, η = 2/5, r = (1, .9, .1).",
    ),
)  # fmt: skip
