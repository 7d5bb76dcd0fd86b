"""EAPO (IterResearch): rounds of research earn a discounted share of the outcome, and are compared among all rounds.

    r_{i,k} = γ^{K_i − k}·R_i  for round k of the K_i of answer i
    A_{i,k} = (r_{i,k} − mean)/std over all rounds of all answers of the group

Paper: "IterResearch" (Efficiency-Aware Policy Optimization), 2511.07327; read in three notes that agree: third-party.
A round is a turn, and all tokens of a turn share its advantage. γ = 0.995 is the paper's; the earlier a right answer is
found, the less its rounds are discounted. A group of right answers still teaches where γ < 1: fewer rounds are better.
Its cut of the batch to a multiple of the number of devices is a matter of sampling and not part of this file.
Ours: population std; `per_round` off lets each answer count once in mean and std, by its last round. With that and
γ = 1 it is GRPO. Not the other methods with these letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import turns
from etr.batch import Batch
from etr.errors import FieldError
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("eapo")
@dataclass(frozen=True)
class EAPO(Shaping, GRPO):
    """GRPO's loss with z-scores of discounted outcomes over all rounds of a group."""

    gamma: float = 0.995
    per_round: bool = True

    paper: ClassVar[Paper] = Paper("IterResearch (EAPO)", "2511.07327", "third-party")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"gamma": 1.0, "per_round": False})
    examples = ({"gamma": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma <= 1:
            raise FieldError(f"EAPO.gamma is {self.gamma:g}; give a number above 0 and up to 1")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "turns"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None and batch.turns is not None  # in `needs`
        begins = turns.starts(batch.turns, batch.response_mask)
        number = turns.number(begins)
        last = number[..., -1:]
        earned = batch.rewards.unsqueeze(-1) * self.gamma ** (last - number).to(batch.rewards.dtype)
        counted = begins if self.per_round else begins & (number == last)
        groups = Groups(batch.rewards, batch.group_ids)

        def mean(values: Tensor) -> Tensor:
            rounds = groups.sum(counted.sum(-1).to(values.dtype)).clamp(min=1)
            return (groups.sum(torch.where(counted, values, 0.0).sum(-1)) / rounds).unsqueeze(-1)

        centred = earned - mean(earned)
        std = mean(centred.square()).sqrt()
        low = torch.where(counted, earned, torch.inf).amin(-1)
        high = torch.where(counted, earned, -torch.inf).amax(-1)
        same = groups.least(low) >= groups.largest(high)  # exactly, over counted rounds; a std is rounded
        dead = same.unsqueeze(-1) | (std == 0)
        return torch.where(dead, 0.0, centred / torch.where(dead, 1.0, std))
