"""ASPO: the importance ratio of good tokens turned round, so that those lagging behind are pulled hardest.

Paper: Wang et al., "ASPO: Asymmetric Importance Sampling Policy Optimization", 2510.06062.
    J = token-mean[sg[w]·A·log π],   w = min(1/r, c)·1[r ≤ 1+ε_high]  for A > 0
                                     w = min(r, c)·1[r ≥ 1−ε_low]     for A < 0
PPO's weight r makes likely good tokens likelier still; with 1/r they stop by themselves. Beyond the clip bound no
gradient, as in PPO; a weight above c is cut to c and keeps its gradient (a soft dual clip, on both sides).
ε = 0.2 and c = 3, the field `dual_clip`: the script of the authors, whose code also widens ε for tokens of high entropy
(its earlier paper, not here). Written as a weighted log π as in `cispo`: same gradient as their code, other values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import surrogates
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("aspo")
@dataclass(frozen=True)
class ASPO(GRPO):
    """J = token-mean[sg[w]·A·log π], w = min(1/r, c) for A > 0 and min(r, c) for A < 0, 0 beyond the clip bounds."""

    aggregation: str = "token-mean"
    dual_clip: float | None = 3.0

    paper: ClassVar[Paper] = Paper("Asymmetric Importance Sampling Policy Optimization", "2510.06062", "third-party")
    reduces_to: ClassVar[Reduction | None] = None
    examples = ({"dual_clip": None}, {"eps_high": 0.28, "beta": 0.1})

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {
            "pessimistic": "the objective A·log π is weighted by the ratio, not bounded by it",
            "finite_differences": "the weight is a stop-gradient, so c is not the derivative of the value",
        }

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantage, ratio = batch.token_advantages, log_ratio.detach().exp()  # a weight, by the paper's stop-gradient
        weight = torch.where(advantage > 0, 1 / ratio, ratio)
        weight = weight if self.dual_clip is None else weight.clamp(max=self.dual_clip)
        inside = torch.where(advantage > 0, ratio <= region.high, ratio >= region.low)
        return torch.where(inside, weight, 0.0) * surrogates.policy_gradient(batch.log_probs, advantage)
