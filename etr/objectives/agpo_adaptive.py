"""AGPO (adaptive): GRPO in which a group of equal answers teaches too, with advantages of +1 or −1.

Paper: Li et al., "Adaptive Group Policy Optimization: Towards Stable Training and Token-Efficient Reasoning",
2503.15952, first version: a group whose rewards are all equal has no z-score, so its responses get
    A_i = +1 if all are right, −1 if all are wrong;    A_i = (R_i − mean)/std otherwise, and GRPO's loss.
Read in others' notes only. OURS: "right" is a reward above ½; the size of the constant is the field `homogeneous`
(1: the paper's). Not here: the paper's length reward belongs to the reward, and the "adaptive loss" (a loss mask and a
loss clip) of its third version, whose thresholds were not found.
Not AGPO with dual statistical feedback (`agpo_feedback`, 2605.20722), which shares the acronym only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("agpo_adaptive")
@dataclass(frozen=True)
class AGPOAdaptive(GRPO):
    """GRPO with A = ±homogeneous for groups that are all right or all wrong."""

    homogeneous: float = 1.0

    paper: ClassVar[Paper] = Paper("Adaptive Group Policy Optimization", "2503.15952", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"homogeneous": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "homogeneous", 0.0, 1e9)

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        constant = self.homogeneous * torch.sign(rewards - 0.5)
        equal = Groups(rewards, group_ids).homogeneous(rewards)
        return torch.where(equal, constant, super().advantage(rewards, group_ids))
