"""SPO: the reward of an answer is how often it beats its own group, which is self-play against oneself.

    W_i = (1/(G−1)) Σ_{j≠i} P(i beats j),   A_i = W_i − 1/2
    P(i beats j) = mean over judges k of 1[c_ik > c_jk] + ½·1[c_ik = c_jk]

Paper: Swamy et al., "A Minimaximalist Approach to RLHF", 2401.04056. RECONSTRUCTED from its abstract: the win rate in
the group as reward, under any policy gradient. Judges are our choice: the one reward (`kind` "rewards"), or each part
of it (`kind` "components"), whose majority may be intransitive; there the time average of self-play is the Minimax
Winner, where no reward model could say who is best. The baseline is ½, the win rate against oneself, and it is the
exact mean of every group. For 0/1 rewards A = G/(2(G−1))·(R − mean), half of RLOO's and unbiased; z-scored it would be
GRPO's. Not SPO, Single-stream or Segment Policy Optimization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch
from etr.errors import FieldError, unknown
from etr.objective import Category, Paper
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

KINDS = ("rewards", "components")


def win_rate(judged: Tensor, group_ids: Tensor) -> Tensor:
    """W_i `[*R, B]` from the marks `[*R, B, K]` of K judges."""
    won = [(mark.unsqueeze(-1) - mark.unsqueeze(-2)).sign() for mark in judged.unbind(-1)]
    beats = (torch.stack(won).mean(0) + 1) / 2
    group = alike.same(group_ids)
    total = torch.where(group, beats, 0.0).sum(-1) - 0.5  # with itself an answer draws
    return total / (group.sum(-1) - 1)


@register("spo_minimax")
@dataclass(frozen=True)
class SPOMinimax(Shaping, GRPO):
    """GRPO's loss with A = win rate within the group − 1/2."""

    kind: str = "rewards"

    paper: ClassVar[Paper] = Paper("A Minimaximalist Approach to RLHF (SPO)", "2401.04056", "reconstructed")
    category: ClassVar[Category] = "advantage"
    reduces_to = None
    examples = ({"kind": "components"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise FieldError(unknown("spo_minimax.kind", self.kind, KINDS))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"components", "group_ids"} if self.kind == "components" else frozenset())

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        super().advantage(rewards, group_ids)  # refuses what no group advantage can use
        return win_rate(rewards.unsqueeze(-1), group_ids) - 0.5

    def shape(self, batch: Batch) -> Tensor:
        if self.kind == "rewards":
            return batch.advantages
        assert batch.components is not None and batch.group_ids is not None  # in `needs`
        return win_rate(batch.components.to(batch.log_probs.dtype), batch.group_ids) - 0.5
