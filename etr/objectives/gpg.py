"""GPG: the plain policy gradient on centred rewards, rescaled for the groups that teach nothing.

    J = token-mean[A·log π],   A_i = α·(R_i − group mean)/F,   α = B/(B − M)

Paper: Chu et al., "GPG: A Simple and Strong Reinforcement Learning Baseline", 2504.02546. B: responses of the batch, M:
those in groups of equal rewards, so that α makes up for what the mean over the batch loses to them. No ratio, no clip,
no KL. F = 1 by default (best in the authors' README); `by_std` takes F = the group's std.
verl counts responses with a score other than 0 for B − M, which is the paper's count for some codings of rewards only;
here it is counted by groups. Differs from `reinforce`: centring instead of leave-one-out, and α.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.reinforce import REINFORCE
from etr.registry import register


@register("gpg")
@dataclass(frozen=True)
class GPG(REINFORCE):
    """J = token-mean[A·log π] with A = B/(B − M)·(R − mean)."""

    by_std: bool = False

    paper: ClassVar[Paper] = Paper(
        "GPG: A Simple and Strong Reinforcement Learning Baseline for Model Reasoning", "2504.02546", "verified"
    )
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", {})
    examples = ({"by_std": True},)

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        estimator = advantages.group_zscore if self.by_std else advantages.group_center
        signal = (~Groups(rewards, group_ids).homogeneous(rewards)).sum(-1, keepdim=True)
        return estimator(rewards, group_ids) * rewards.shape[-1] / signal.clamp(min=1)
