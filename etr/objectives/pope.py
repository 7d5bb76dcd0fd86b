"""POPE: a hard prompt is trained twice, plain and behind the beginning of a right answer, each with its own baseline.

    no R_i > 0  ->  the last `share` of the group begins behind 1, 2, ... tokens of a right answer, until one of them
                    succeeds;  A_i = z-score among the guided answers, or among the plain ones of the group

Paper: "POPE: learning to reason on hard problems via privileged on-policy exploration", 2601.18779. Its idea is read in
notes; the given tokens are never targets, and learning passes from the guided prompt to the plain one.
OURS: the shortest prefix with a success is searched at every step by drawing again (the paper's choice of the prefix is
not known to us); half of the group is guided; the two halves are two prompts, so each has its own mean and std.
Against `ghpo`: half of the group stays plain, and hints end where the shortest helps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import Sampling, given, share_of, zscore_among
from etr.shaping import Shaping


@register("pope")
@dataclass(frozen=True)
class POPE(Shaping, Sampling, GRPO):
    """GRPO on hard prompts in two versions: plain, and guided by the shortest beginning that helps."""

    share: float = 0.5

    paper: ClassVar[Paper] = Paper("POPE: privileged on-policy exploration", "2601.18779", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"share": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "share", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints", "rewards", "group_ids"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None  # in `needs`
        size, horizon = attempt.tokens.shape[-2:]
        guided = torch.arange(size) >= size - share_of(size, self.share)
        looked_at = guided if attempt.round else torch.ones_like(guided)  # later the guided ones must succeed
        hard = ~((attempt.rewards > 0) & looked_at).any(-1, keepdim=True)
        if attempt.round:
            hard = hard & (attempt.given > 0).any(-1, keepdim=True)
        length = attempt.round + 1
        if self.share == 0 or length >= horizon or not bool(hard.any()):
            return None
        return Start(attempt.hints.unsqueeze(-2), torch.where(hard & guided, length, 0))

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        rewards, ids, guided = batch.rewards, batch.group_ids, given(batch) > 0
        hard = (Groups(rewards, ids).sum(guided.to(rewards.dtype)) > 0).unsqueeze(-1)
        apart = zscore_among(rewards, ids, guided) + zscore_among(rewards, ids, ~guided)
        shaped = torch.where(hard, apart.unsqueeze(-1).to(batch.advantages.dtype), batch.token_advantages)
        return shaped.expand(batch.response_mask.shape)
