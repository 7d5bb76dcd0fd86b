"""What every statistic asks of its scores, and the two steps that all bootstraps share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from etr.errors import InputError


class Interval(NamedTuple):
    """An estimate with the ends of its interval, in the unit of the scores."""

    estimate: float
    low: float
    high: float


class Band(NamedTuple):
    """The same for many points at once (the steps of a learning curve): three tensors of one shape."""

    estimate: Tensor
    low: Tensor
    high: Tensor


def refuse_not_finite(scores: Tensor) -> None:
    """Raise InputError naming the first score that is NaN or infinite."""
    if not bool(scores.isfinite().all()):
        at = (~scores.isfinite()).nonzero()[0].tolist()
        value = scores[tuple(at)].item()
        raise InputError(f"score {value:g} at index {at} is not finite; mend the run or leave that seed out")


def checked(scores: Tensor) -> Tensor:
    """Scores as float64 on the CPU, where the generator lives. Raises InputError unless finite, 2 or more in a row."""
    if scores.ndim == 0 or scores.shape[-1] < 2:
        raise InputError(
            f"a bootstrap needs at least 2 seeds or items in the last dim of {tuple(scores.shape)}; run more"
        )
    refuse_not_finite(scores)
    return scores.double().cpu()


def weights(index: Tensor, n: int) -> Tensor:
    """Share of each of n places among the places drawn in the last dimension: `[..., n]`, rows sum to 1."""
    counts = torch.zeros(*index.shape[:-1], n, dtype=torch.float64)
    return counts.scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64)) / index.shape[-1]


def ends(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The percentiles of the last dimension that leave (1 − level)/2 on each side."""
    tail = (1 - level) / 2
    return draws.quantile(tail, dim=-1), draws.quantile(1 - tail, dim=-1)
