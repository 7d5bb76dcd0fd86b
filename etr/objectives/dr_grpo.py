"""Dr. GRPO: GRPO without its two normalisations, by the reward's std and by the response's own length.

Paper: Liu et al., "Understanding R1-Zero-Like Training", 2503.20783.
A_i = R_i − mean; J = 1/(B·L) Σ_i Σ_t min(r·A_i, clip(r, 1−ε, 1+ε)·A_i) with a constant L (the paper's scripts: the
generation limit, 3000). Here L is `length`, or the padded length T of the rollout batch when it is not given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages, aggregation
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("dr_grpo")
@dataclass(frozen=True)
class DrGRPO(GRPO):
    """J = 1/(B·length) Σ min(r·A, clip(r)·A) with A = R − mean."""

    aggregation: str = "seq-mean-token-sum-norm"
    length: int | None = None

    paper: ClassVar[Paper] = Paper("Understanding R1-Zero-Like Training (Dr. GRPO)", "2503.20783", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"aggregation": "seq-mean-token-mean"})
    examples = ({"length": 3000},)

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_center(rewards, group_ids)

    def denominator(self, mask: Tensor) -> Tensor:
        return aggregation.global_denominator(mask, self.aggregation, self.length)
