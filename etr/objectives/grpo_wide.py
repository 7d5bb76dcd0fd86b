"""GRPO-wide: the control for ETR. GRPO with one clip range for all, the mean of what ETR would have used.

This project's own, not a paper's. ETR's mean range differs from GRPO's (how, depends on the data), and another range
alone changes training. If ETR beats GRPO but not this control, the gain is from width; if it beats both, from
allocation.
The mean is taken over the responses with A ≠ 0 of each rollout batch, separately for the two bounds.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.objective import Paper, State
from etr.objectives.etr import ETR, batch_mean
from etr.registry import register


@register("grpo_wide")
@dataclass(frozen=True)
class GRPOWide(ETR):
    """GRPO with ε = mean over the batch of ETR's ε_i."""

    paper: ClassVar[Paper] = Paper("Control for ETR, this project's own", "", "reconstructed")

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "wide_low", "wide_high")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        low, high = super().region(batch.clean(), batch.log_probs)
        wide = {
            "wide_low": batch_mean(1 - low.double(), batch),
            "wide_high": batch_mean(high.double() - 1, batch),
        }
        return dataclasses.replace(batch, columns={**batch.columns, **wide}), state

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        low, high = (batch.columns[name].unsqueeze(-1).to(log_ratio.dtype) for name in ("wide_low", "wide_high"))
        return regions.interval(low, high)
