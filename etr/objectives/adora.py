"""ADORA: groups count less in which the longest right answer is not longer than the usual wrong one.

    W(q) = 1 if max_{right} T_i > mean_{wrong} T_i, else `weight`;   A'_i = W(q)·A_i

kind "llm": wrong answers cut off at `max_length` are left out of the mean; nothing right: `weight`; nothing wrong: 1.
kind "vlm": nothing right: 1; nothing wrong: `weight`. The two published versions disagree exactly there, where GRPO's
advantages are 0 anyway. Ours: an answer without tokens (masked out) has no length and counts on neither side.
Paper: "Training Reasoning Models with Dynamic Advantage Estimation on RL" (ADORA, Advantage Dynamics via Online Rollout
Adaptation), 2602.10019, read in the authors' two repositories, one for language and one for vision-language models.
weight = 0.1 is theirs, and so is max_length, 4054 or 4094, the limit of their generation; None here counts all wrong
answers. Right is a reward above 1/2. weight = 1 is GRPO.
With answers of one length (most toys) every mixed group gets `weight`: a smaller learning rate and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.alike import same
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

KINDS = ("llm", "vlm")


@register("adora")
@dataclass(frozen=True)
class ADORA(Shaping, GRPO):
    """GRPO with W·A, W = 1 where the longest right answer beats the mean length of the wrong ones, else `weight`."""

    kind: str = "llm"
    weight: float = 0.1
    max_length: int | None = None

    paper: ClassVar[Paper] = Paper("ADORA: Dynamic Advantage Estimation on RL", "2602.10019", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"weight": 1.0})
    examples = ({"kind": "vlm"}, {"max_length": 5})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", KINDS)
        check_range(self, "weight", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        length = batch.response_mask.sum(-1).to(batch.rewards.dtype)
        right, wrong = ((batch.rewards > 0.5) & (length > 0)), ((batch.rewards <= 0.5) & (length > 0))
        if self.kind == "llm" and self.max_length is not None:
            wrong = wrong & (length < self.max_length)
        groups = Groups(batch.rewards, batch.group_ids)
        count = groups.sum(wrong.to(length.dtype))
        mean = groups.sum(torch.where(wrong, length, 0.0)) / count.clamp(min=1)
        longest = torch.where(right, length, -1.0).unsqueeze(-2)
        longest = torch.where(same(batch.group_ids), longest, -1.0).amax(-1)  # −1: nothing is right
        some_right, some_wrong = longest >= 0, count > 0
        if self.kind == "llm":
            full = some_right & (~some_wrong | (longest > mean))
        else:
            full = ~some_right | (some_wrong & (longest > mean))
        factor = torch.where(full, torch.ones_like(length), self.weight)
        return (batch.token_advantages * factor.unsqueeze(-1)).expand_as(batch.log_probs)
