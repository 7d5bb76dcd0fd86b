"""GSPO: one ratio for the whole response, its tokens' geometric mean, clipped in a very narrow interval.

Paper: Zheng et al., "Group Sequence Policy Optimization", 2507.18071.
s_i = exp((1/T_i) Σ_t log r_{i,t}); J = (1/G) Σ_i min(s_i·A_i, clip(s_i, 1−3e-4, 1+4e-4)·A_i).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import ratios
from etr.batch import Batch
from etr.objective import Paper, Reduction, Scope
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("gspo")
@dataclass(frozen=True)
class GSPO(GRPO):
    """J = mean_i min(s_i·A_i, clip(s_i, 1−ε_low, 1+ε_high)·A_i)."""

    eps_low: float = 3e-4
    eps_high: float = 4e-4

    paper: ClassVar[Paper] = Paper("Group Sequence Policy Optimization", "2507.18071", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"eps_low": 0.2, "eps_high": 0.2}, single_token=True)

    @property
    def scope(self) -> Scope:
        return "row"

    def ratio(self, batch: Batch) -> Tensor:
        return ratios.sequence(batch)
