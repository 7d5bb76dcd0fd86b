"""IGPO: a turn earns what it adds to the probability of the right answer, the last turn the outcome.

    g_k = P_k − P_{k−1} on the last token of turn k,  the last turn's is R;   G_t = Σ_{s≥t} γ^{s−t} g_s
    A_t = G_t − mean of the group at the same position t                         kind = "position", γ = 1
    A_t = (G_t − mean)/std, both of the group's G on the first token             kind = "first", γ = 0.5

Paper: Wang et al., "Information Gain-based Policy Optimization", 2510.14967. P_k is the policy's probability of the
gold answer after turn k, found by teacher forcing. Here it is read from `values`, V on the first token of turn k + 1:
give the paper's P there, or a critic's; in the toys V is exactly the policy's probability of a right answer. Default:
kind and γ = 1 are the authors' code's, "first" is a second function in it with γ = 0.5 (its text may z-score instead).
γ counts tokens, as there. `gain` scales g of all turns but the last and is ours. With γ = 1 the gains add up: G_t = R
+ gain·(P at the last turn's start − P at the start of t's turn). A single turn leaves the outcome alone: Dr. GRPO's
advantage, or GRPO's for "first". Mean over the members that have a token there; population std.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import turns
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

KINDS = ("position", "first")


@register("igpo")
@dataclass(frozen=True)
class IGPO(Shaping, GRPO):
    """GRPO's loss with returns of information gains and outcome, centred in the group."""

    kind: str = "position"
    gamma: float = 1.0
    gain: float = 1.0

    paper: ClassVar[Paper] = Paper("Information Gain-based Policy Optimization", "2510.14967", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"kind": "first", "gamma": 1.0, "gain": 0.0})
    examples = ({"kind": "first", "gamma": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", KINDS)
        check_range(self, "gamma", 0.0, 1.0)
        check_range(self, "gain", 0.0, 10.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "values", "turns"}

    def returns(self, batch: Batch) -> Tensor:
        """G_t, `[*R, B, T]`."""
        assert batch.rewards is not None and batch.values is not None and batch.turns is not None  # in `needs`
        mask, begins = batch.response_mask, turns.starts(batch.turns, batch.response_mask)
        number = turns.number(begins)
        gained = turns.at_next_start(batch.values, begins) - turns.at_start(batch.values, begins)
        earned = torch.where(number == number[..., -1:], batch.rewards.unsqueeze(-1), self.gain * gained)
        earned = torch.where(turns.ends(batch.turns, mask), earned, 0.0)
        total, found = torch.zeros_like(earned[..., 0]), []
        for t in reversed(range(mask.shape[-1])):
            total = torch.where(mask[..., t], earned[..., t] + self.gamma * total, total)
            found.append(total)
        return torch.stack(found[::-1], -1)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.group_ids is not None  # in `needs`
        returns, mask = self.returns(batch), batch.response_mask
        if self.kind == "first":
            return self.scored(returns, returns.gather(-1, mask.int().argmax(-1, keepdim=True)), batch.group_ids)
        columns, kept = returns.movedim(-1, 0), mask.movedim(-1, 0)  # every position is a run of its own
        groups = Groups(columns, batch.group_ids.expand(columns.shape))
        mean = groups.sum(torch.where(kept, columns, 0.0)) / groups.sum(kept.to(columns.dtype)).clamp(min=1)
        return (columns - mean).movedim(0, -1)

    def scored(self, returns: Tensor, first: Tensor, group_ids: Tensor) -> Tensor:
        groups = Groups(start := first.squeeze(-1), group_ids)
        mean = groups.mean(start)
        std = (groups.sum((start - mean) ** 2) / groups.size).sqrt().unsqueeze(-1)
        dead = groups.homogeneous(start).unsqueeze(-1) | (std == 0)
        return torch.where(dead, 0.0, (returns - mean.unsqueeze(-1)) / torch.where(dead, 1.0, std))
