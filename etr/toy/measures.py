"""What a run is judged by: one number per seed for each measure, the same in comparisons, sweeps and tables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from etr import stats
from etr.errors import InputError
from etr.toy.recorder import History
from toy_envs.model import ExactModel

LEVEL = 0.9  # the score at which entropies are compared unless another is asked for
MATCHED = "matched entropy"
MEASURES: dict[str, str] = {
    "final score": "expected reward after training, 0 = uniform policy, 1 = optimum",
    "learning score": "the same averaged over training: speed counts",
    "final entropy": "nats per token after training",
    MATCHED: "nats per token when the score first reaches the level (0.9 unless --level names another), over the "
    "seeds that reach it: what the reward was paid with",
}
ENTROPIES = ("final entropy", MATCHED)  # of these, more is more and not better


def measure(history: History, model: ExactModel, level: float = LEVEL) -> dict[str, Tensor]:
    """Each measure of `MEASURES` per seed, `[seeds]`. "Final" is the mean over the last tenth of the measurements.

    The matched entropy is NaN for a seed that never reaches the level. Raises InputError as `check_level` does.
    """
    score, entropy = model.score(history.curves["reward"]), history.curves["entropy"]
    last = max(1, len(history.steps) // 10)
    return {
        "final score": score[:, -last:].mean(-1),
        "learning score": stats.area_under_curve(score, history.steps),
        "final entropy": entropy[:, -last:].mean(-1),
        MATCHED: entropy_at(score, entropy, level),
    }


def entropy_at(score: Tensor, entropy: Tensor, level: float) -> Tensor:
    """Entropy when the score first reaches a level, by linear interpolation along each run's own path: `[seeds]`.

    H* = H_k + (H_{k+1} − H_k)·(level − s_k)/(s_{k+1} − s_k) for the first k with s_k < level ≤ s_{k+1}. At one step a
    rule that learns faster always has less entropy; at one score the question is fair. NaN for a run that never
    reaches the level, and for one that is past it at its first measurement, where its path began unseen.
    score, entropy: `[seeds, measurements]`. Raises InputError as `check_level` does.

    >>> entropy_at(torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[2.0, 1.0, 0.5]]), level=0.75)
    tensor([0.7500])
    """
    check_level(level)
    reached = score >= level
    first = reached.to(torch.int8).argmax(-1, keepdim=True)  # of equal values, the first; 0 also where none is
    before = (first - 1).clamp(min=0)
    low, high = score.gather(-1, before), score.gather(-1, first)
    part = (level - low) / (high - low)
    start = entropy.gather(-1, before)
    found = start + part * (entropy.gather(-1, first) - start)
    return found.masked_fill(first == 0, math.nan).squeeze(-1)


def check_level(level: float) -> None:
    """Raise InputError for a level outside (0, 1]."""
    if not 0 < level <= 1:
        raise InputError(f"level is {level:g}; give a score above 0 and up to 1, such as {LEVEL}")


def defined(values: Tensor) -> Tensor:
    """The values that are there: seeds without one are left out."""
    return values[~values.isnan()]
