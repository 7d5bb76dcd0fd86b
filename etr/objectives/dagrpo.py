"""DaGRPO: right and wrong answers that hardly differ are left out, because their gradients cancel.

    s_i in [0, 1] a fine score,  i and j of opposite sign of R − mean:  D_ij = |s_i − s_j|
    m_i = 1[some j of opposite sign has D_ij ≥ δ];  A_i = (R_i − mean)/std over the kept of the group, 0 for the others

Paper: "DaGRPO" (distinctiveness-aware GRPO), 2512.06337. RECONSTRUCTED: its abstract has the two mechanisms, masking
below a threshold of distinctiveness and expert anchors where nothing is right; threshold and scorer are not known. Our
choices: s is the mean of the reward's components (the paper's scorer is a language model), δ = 0.1, and answers whose
reward is the mean are of no pair and stay. A group with no distinct pair teaches nothing. The anchors are a matter of
sampling, they bring answers of another policy into the group, and are not part of this file. With δ = 0 nothing is
left out: GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch
from etr.errors import FieldError
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


def distinct(rewards: Tensor, scores: Tensor, group_ids: Tensor, delta: float) -> Tensor:
    """m `[*R, B]`: True for answers that differ enough from one of opposite sign, or are of no pair in such a group."""
    groups = Groups(rewards, group_ids)
    sign = torch.where(groups.homogeneous(rewards), 0.0, (rewards - groups.mean(rewards)).sign())
    opposite = alike.same(group_ids) & (sign.unsqueeze(-1) * sign.unsqueeze(-2) < 0)
    apart = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).abs() >= delta
    paired = (opposite & apart).any(-1)
    return paired | ((sign == 0) & (groups.sum(paired.to(rewards.dtype)) > 0))


@register("dagrpo")
@dataclass(frozen=True)
class DaGRPO(Shaping, GRPO):
    """GRPO's loss with z-scores over the answers that are distinct by at least delta."""

    delta: float = 0.1

    paper: ClassVar[Paper] = Paper("DaGRPO", "2512.06337", "reconstructed")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"delta": 0.0})
    examples = ({"delta": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.delta <= 1:
            raise FieldError(f"DaGRPO.delta is {self.delta:g}; give a number from 0 to 1, the range of the scores")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "components"}

    def shape(self, batch: Batch) -> Tensor:
        rewards, ids = batch.rewards, batch.group_ids
        assert rewards is not None and ids is not None and batch.components is not None  # in `needs`
        groups = Groups(rewards, ids)
        kept = distinct(rewards, batch.components.to(rewards.dtype).mean(-1), ids, self.delta)
        count = groups.sum(kept.to(rewards.dtype)).clamp(min=1)
        centred = rewards - groups.sum(torch.where(kept, rewards, 0.0)) / count
        std = (groups.sum(torch.where(kept, centred.square(), 0.0)) / count).sqrt()
        live = kept & (std > 0)
        return torch.where(live, centred / torch.where(live, std, 1.0), 0.0)
