"""Who is inside the trust region, who left it, and how much of the batch still counts: after an update."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.batch import Batch, LossOutput, Mean
from etr.diagnostics import by_success_rate

SUCCESS_EDGES = (0.1, 0.3, 0.5, 0.7, 0.9)  # inner boundaries of the bins of a group's success rate
WIDTH, OUTSIDE = "region/width", "region/outside"  # by success rate: one metric for each bin


def occupancy(batch: Batch, out: LossOutput) -> dict[str, Mean]:
    """Shares of the tokens with A ≠ 0 whose ratio is below, inside and above its region, `[*R]`; they add up to 1.

    Being outside is not being clipped: a token that moved against its advantage keeps its gradient there.
    """
    where, below, above = _sides(batch, out)
    sides = {"below": below, "inside": ~(below | above), "above": above}
    return {f"region/{name}": Mean.of(side.double(), where) for name, side in sides.items()}


def by_difficulty(batch: Batch, out: LossOutput) -> dict[str, Mean]:
    """Width of the region and share of tokens outside it by success rate of the group, `[*R, 6]` (`SUCCESS_EDGES`).

    Over the tokens with A ≠ 0. Raises InputError for a batch without group statistics.
    """
    where, below, above = _sides(batch, out)
    edges = torch.tensor(SUCCESS_EDGES)
    values = {WIDTH: out.region.high - out.region.low, OUTSIDE: (below | above).double()}
    return {name: by_success_rate(batch, value, where, edges) for name, value in values.items()}


def squared_ratio(out: LossOutput) -> Mean:
    """Mean of r², `[*R]`: with the mean of r it gives `effective_share`."""
    return Mean.of((2 * out.log_ratio.detach()).exp(), out.mask)  # a report, not part of the loss


def effective_share(ratio: Mean, squared: Mean) -> Tensor:
    """Effective sample size over sample size, (Σ r)² / (N Σ r²), in (0, 1], from the means of r and r² over N tokens.

    Kish's effective sample size of importance weights: 1 when all ratios are equal, 1/N when one token has all weight.

    >>> r = torch.tensor([[1.0, 3.0]])
    >>> every = torch.ones_like(r, dtype=torch.bool)
    >>> effective_share(Mean.of(r, every), Mean.of(r**2, every))
    tensor(0.8000, dtype=torch.float64)
    """
    return ratio.value**2 / squared.value


def pass_at_k(success: Tensor, k: int) -> Tensor:
    """1 − (1 − p)^k: chance that one of k answers is right, from the exact chance p of one. (From counts: `etr.stats`.)

    >>> pass_at_k(torch.tensor([0.0, 0.5, 1.0]), 2)
    tensor([0.0000, 0.7500, 1.0000])
    """
    return -torch.expm1(k * torch.log1p(-success))


def _sides(batch: Batch, out: LossOutput) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens with A ≠ 0, and which of all tokens are below and above their bounds."""
    ratio = out.log_ratio.detach().exp()  # a report, not part of the loss
    return out.mask & (batch.token_advantages != 0), ratio < out.region.low, ratio > out.region.high
