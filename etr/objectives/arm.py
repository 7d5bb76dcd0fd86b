"""ProGRPO (ARM): take from the advantage how sure the policy already was of that answer.

    c(o|q) = exp(mean of log p over the 20 % least probable tokens of o)
    A~_i = A_i + α·(c(q) − c(o_i|q))   in groups with right and wrong answers, else A_i

Paper: "Back to Basics" (ProGRPO), 2602.05281 (not RLOO's paper of that name); the rule for the advantage is its ARM.
THIRD-PARTY (two notes); α was not found: 0.1 is ours. c(q), the confidence in the prompt, is not at hand in a loss on
responses: `prompt_confidence` is a constant for it, or None for the group's mean of c(o|q) (ours), which leaves the
group's mean advantage alone. To first order c(q) is only a baseline, the same for all responses to a
prompt. Token mean and clip [0.8, 1.28] are DAPO's, whose loss this is with α = 0.
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
from etr.objectives.dapo import DAPO
from etr.registry import register
from etr.shaping import Shaping


@register("arm")
@dataclass(frozen=True)
class ARM(Shaping, DAPO):
    """DAPO with A + alpha·(c(q) − c(o|q)) in mixed groups; c: geometric mean probability of the unlikeliest tokens."""

    alpha: float = 0.1
    share: float = 0.2
    prompt_confidence: float | None = None

    paper: ClassVar[Paper] = Paper("Back to Basics (ProGRPO, ARM)", "2602.05281", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("dapo", {"alpha": 0.0})
    examples = ({"prompt_confidence": 0.5, "share": 1.0},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "share", 0.0, 1.0, open_low=True)
        if self.prompt_confidence is not None:
            check_range(self, "prompt_confidence", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        groups = Groups(batch.rewards, batch.group_ids)
        sure = confidence(batch.old_log_probs, batch.response_mask, self.share).to(batch.rewards.dtype)
        rows = batch.response_mask.any(-1).to(sure.dtype)  # a masked-out answer has no confidence
        mean = groups.sum(sure * rows) / groups.sum(rows).clamp(min=1)
        usual = mean if self.prompt_confidence is None else self.prompt_confidence
        shift = torch.where(groups.homogeneous(batch.rewards), 0.0, self.alpha * (usual - sure))
        return (batch.token_advantages + shift.unsqueeze(-1)).expand_as(batch.log_probs)


def confidence(log_probs: Tensor, mask: Tensor, share: float) -> Tensor:
    """Geometric mean probability of that share of a response's tokens, the least probable ones and at least one."""
    length = mask.sum(-1, keepdim=True)
    count = (share * length.double() - 1e-6).ceil().clamp(min=1)  # 20 % of 5 is 1, whatever rounding says
    ordered = torch.where(mask, log_probs, torch.inf).sort(-1).values
    place = torch.arange(mask.shape[-1], device=mask.device)
    low = torch.where((place < count) & (place < length), ordered, 0.0)
    return (low.sum(-1) / count.squeeze(-1)).exp()
