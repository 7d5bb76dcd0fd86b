"""Floor 0: what comes out of a loss: the region, the per-token objective, and means that stay exact when added."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Region(NamedTuple):
    """The interval of ratios π/π_old that an update may use: `low ≤ 1 ≤ high`, broadcastable to `[*R, B, T]`."""

    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Mean:
    """A mean kept as sum and count, `[*R]`: added over micro-batches and ranks, divided once, so it stays exact.

    >>> (Mean(torch.tensor(1.0), torch.tensor(1.0)) + Mean(torch.tensor(0.0), torch.tensor(3.0))).value.item()
    0.25
    """

    sum: Tensor
    count: Tensor

    def __add__(self, other: object) -> Mean:
        if not isinstance(other, Mean):
            return NotImplemented
        return Mean(self.sum + other.sum, self.count + other.count)

    @property
    def value(self) -> Tensor:
        """sum / count; NaN where nothing was counted."""
        return self.sum / self.count

    @staticmethod
    def of(values: Tensor, where: Tensor) -> Mean:
        """Mean over the last two dimensions of the entries selected by the bool mask `where`, in double precision."""
        return Mean(torch.where(where, values, 0.0).double().sum((-2, -1)), where.sum((-2, -1)).double())


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What `policy_loss` returns.

    loss `[*R]` is minimised; per_token `[*R, B, T]` is the objective before aggregation (to be maximised, 0 on
    padding, regularizers excluded); log_ratio = log π/π_old as the objective sees it, token_log_ratio = of each token
    alone; region: bounds, `[*R, B, T]`; mask: the kept tokens.
    """

    loss: Tensor
    per_token: Tensor
    log_ratio: Tensor
    region: Region
    mask: Tensor
    token_log_ratio: Tensor

    @cached_property
    def metrics(self) -> dict[str, Mean]:
        """Exact sums for logging, computed when first read. Units and meaning: `etr.diagnostics.METRICS`."""
        log_ratio = self.token_log_ratio.detach()  # a report, not part of the loss
        ratio = self.log_ratio.detach().exp()  # likewise
        return {
            "policy/kl_old_to_new_k3": Mean.of(log_ratio.exp() - 1 - log_ratio, self.mask),
            "policy/ratio": Mean.of(ratio, self.mask),
            "policy/objective": Mean.of(self.per_token.detach(), self.mask),  # a report as well
            "region/width": Mean.of(self.region.high - self.region.low, self.mask),
        }
