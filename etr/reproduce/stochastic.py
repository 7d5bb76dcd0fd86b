"""Section 1, continued: the stochastic gradient bandit, with a constant step and no baseline."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from etr.reproduce.base import Measured, Statement, Target, exactly, mean_with_error

ARMS = (0.9, 0.6, 0.3, 0.1)
STEPS = (0.1, 1.0)
RUNS, MARKS = 256, (2_000, 10_000, 20_000)


@cache
def bandit_runs() -> tuple[Tensor, Tensor, Tensor]:
    """Gap, regret and least probability at the marks, `[steps, RUNS, marks]` each: θ += η R_t (e_a − π)."""
    rng = torch.Generator().manual_seed(0)
    means = torch.tensor(ARMS, dtype=torch.float64)
    eta = torch.tensor(STEPS, dtype=torch.float64).repeat_interleave(RUNS).unsqueeze(-1)
    logits = torch.zeros(len(eta), len(ARMS), dtype=torch.float64)
    regret = torch.zeros(len(eta), dtype=torch.float64)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in range(1, MARKS[-1] + 1):
        probs = logits.softmax(-1)
        gap = ARMS[0] - probs @ means
        regret = regret + gap
        if t in MARKS:
            kept.append((gap, regret, probs.min(-1).values))
        arm = torch.multinomial(probs, 1, generator=rng)
        weight = eta * (torch.rand(arm.shape, generator=rng, dtype=torch.float64) < means[arm])
        logits = (logits - weight * probs).scatter_add(-1, arm, weight)
    gap, regret, least = (torch.stack(part, -1).unflatten(0, (len(STEPS), RUNS)) for part in zip(*kept, strict=True))
    return gap, regret, least


def decay() -> list[Measured]:
    """t·E[gap] at 20 000 over that at 2 000, and the log-log slope of the rarest arm's median probability."""
    gap, _, least = bandit_runs()
    ratio = MARKS[-1] * gap[0, :, -1] / (MARKS[0] * gap[0, :, 0].mean())
    slopes = (least[..., -1] / least[..., 0]).log10()
    worst = slopes.median(-1).values.min()
    return [mean_with_error(ratio), *exactly(float(worst))]


def regrets() -> list[Measured]:
    """Regret of the worst run from 10 000 to 20 000, as a share of that up to 10 000, for each step size."""
    regret = bandit_runs()[1]
    growth = (regret[..., 2] - regret[..., 1]) / regret[..., 1]
    worst = regret[..., 2].argmax(-1)
    return exactly(*(float(growth[i, run]) for i, run in enumerate(worst.tolist())))


STOCHASTIC = (
    Statement(
        "stochastic-rate", 1,
        "The stochastic gradient bandit with a constant step converges as O(1/t), and no arm's probability falls "
        "faster than 1/t.", "2402.17235", "third-party",
        (Target("t·gap at 20 000 / at 2 000, η = 0.1", 1.0, 0.1, "<="),
         Target("steepest median slope of the rarest arm", -1.0, 0.1, ">=")),
        decay, quick=False,
        note="Four Bernoulli arms .9, .6, .3, .1; η 0.1 and 1, 256 runs each. A slope over one decade of a finite run "
        "is near −1 and not at it, hence the tolerance of 0.1.",
    ),
    Statement(
        "stochastic-regret", 1, "Regret grows as log n for small steps; larger steps can give linear regret.",
        "2603.10219, 2603.26547", "third-party",
        (Target("growth when n doubles, worst run, η = 0.1", 0.1, relation="<="),
         Target("growth when n doubles, worst run, η = 1", 0.95, relation=">=")),
        regrets, quick=False,
        note="Linear regret doubles (growth 1); log n adds 7.5 % from 10 000 to 20 000.",
    ),
)  # fmt: skip
