"""REINFORCE: the plain policy gradient, J = A·log π.

Paper: Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement learning", 1992.
No ratio and no region, so several updates per rollout batch are off-policy without correction. The advantage is the
leave-one-out baseline (2402.14740), which keeps the first update's gradient unbiased.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages, surrogates
from etr.batch import Batch, Region
from etr.objective import Objective, Paper
from etr.registry import register


@register("reinforce")
@dataclass(frozen=True)
class REINFORCE(Objective):
    """J = agg[A·log π]."""

    aggregation: str = "token-mean"

    paper: ClassVar[Paper] = Paper("Simple statistical gradient-following algorithms", "", "verified")

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "the objective A·log π has no ratio to be pessimistic about"}

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.leave_one_out(rewards, group_ids)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return surrogates.policy_gradient(batch.log_probs, batch.token_advantages)
