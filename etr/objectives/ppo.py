"""PPO-clip: J = min(r·A, clip(r, 1−ε_low, 1+ε_high)·A), mean over tokens; optional dual clip.

Papers: Schulman et al., "Proximal Policy Optimization Algorithms", 1707.06347; the dual clip, max(J, c·A)
where A < 0, is Ye et al. 1912.09729 (verl uses c = 3, most DAPO scripts 10; off here as in PPO's paper).
PPO's critic is not part of a loss: where there is none, advantages are group z-scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import regions, surrogates
from etr.batch import Batch, Region
from etr.objective import Objective, Paper
from etr.registry import register


@register("ppo")
@dataclass(frozen=True)
class PPO(Objective):
    """J = agg[min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)], at least dual_clip·A where A < 0."""

    aggregation: str = "token-mean"
    eps_low: float = 0.2
    eps_high: float = 0.2
    dual_clip: float | None = None

    paper: ClassVar[Paper] = Paper("Proximal Policy Optimization Algorithms", "1707.06347", "verified")
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({"dual_clip": 3.0},)

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.dual_clip is None:
            return {}
        return {"pessimistic": "beyond r = c the dual clip bounds the loss of bad responses from below, by design"}

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        return regions.fixed(self.eps_low, self.eps_high, log_ratio)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return surrogates.pessimistic_clip(log_ratio, batch.token_advantages, region, self.dual_clip)
