"""CISPO: clip the importance weight, not the update, so that no token loses its gradient.

Paper: MiniMax, "MiniMax-M1", 2506.13585. J = token-mean[sg[clip(r, 1−ε_low, 1+ε_high)]·A·log π].
Only the upper bound is meant to be tuned (no lower one: ε_low = 1). Conventions for it differ: TRL caps r at 5,
open-instruct at 1.272; the default ε_high = 4 is TRL's cap, not a value read in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import regions, surrogates
from etr.batch import Batch, Region
from etr.objective import Objective, Paper, Reduction
from etr.registry import register


@register("cispo")
@dataclass(frozen=True)
class CISPO(Objective):
    """J = token-mean[sg[clip(r, 1−ε_low, 1+ε_high)]·A·log π]."""

    aggregation: str = "token-mean"
    eps_low: float = 1.0
    eps_high: float = 4.0

    paper: ClassVar[Paper] = Paper("MiniMax-M1 (CISPO)", "2506.13585", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", {"eps_low": 0.0, "eps_high": 0.0})

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {
            "pessimistic": "the objective A·log π is weighted by the ratio, not bounded by it",
            "finite_differences": "the weight is a stop-gradient, so c is not the derivative of the value",
        }

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        return regions.fixed(self.eps_low, self.eps_high, log_ratio)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return surrogates.weighted_policy_gradient(log_ratio, batch.log_probs, batch.token_advantages, region)
