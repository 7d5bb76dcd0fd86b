"""Implicit PRM: a language model's log-ratio to its reference is a reward for every step, without step labels.

    r(y) = β·ln π_φ(y)/π_ref(y), trained on outcomes l:  maximise l·ln σ(r) + (1−l)·ln(1−σ(r))         `outcome_loss`
    reward of step k:  β Σ_{t in step k} ln π_φ/π_ref, the difference of two prefix values               `step_rewards`
    A_t = A_i + share·(G_t − mean of the other answers' whole r),  G_t = Σ of the rewards from t's step on

Paper: Yuan et al., "Free Process Rewards without Process Labels", 2412.01981. The loss is read in the authors' text;
the step rewards as differences are the standard reading, and how they enter an advantage is RECONSTRUCTED: a
leave-one-out baseline and returns to go, as PRIME does. A batch has no column for a reward model, so π_φ is the policy
itself at the start of the update, π_old; steps are turns. `share` = 0 leaves GRPO. Defaults β = 0.05 and share = 1 are
ours. Mind the loop: a policy that rates itself finds good what it already prefers to its reference. The outcome term
has to outweigh it, which a small β sees to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import turns
from etr.batch import Batch
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


def outcome_loss(log_ratio: Tensor, outcome: Tensor, beta: float) -> Tensor:
    """−l·ln σ(r) − (1−l)·ln(1−σ(r)) with r = β·log_ratio, for log π_φ/π_ref of whole answers; same shape."""
    return torch.nn.functional.binary_cross_entropy_with_logits(beta * log_ratio, outcome, reduction="none")


def step_rewards(log_ratio: Tensor, turn_ids: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of each step on its last token, 0 elsewhere: `[*R, B, T]` from log π_φ/π_ref of the tokens."""
    begins = turns.starts(turn_ids, mask)
    prefix = beta * torch.where(mask, log_ratio, 0.0).cumsum(-1)
    before = turns.at_start(torch.nn.functional.pad(prefix[..., :-1], (1, 0)), begins)
    return torch.where(turns.ends(turn_ids, mask), prefix - before, 0.0)


@register("implicit_prm")
@dataclass(frozen=True)
class ImplicitPRM(Shaping, GRPO):
    """GRPO's loss with the return of the policy's own log-ratios added to the advantage."""

    prm_beta: float = 0.05
    share: float = 1.0

    paper: ClassVar[Paper] = Paper("Free Process Rewards without Process Labels", "2412.01981", "reconstructed")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"share": 0.0})
    examples = ({"prm_beta": 0.5, "share": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "prm_beta", 0.0, 10.0)
        check_range(self, "share", 0.0, 10.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"ref_log_probs", "group_ids", "turns"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.ref_log_probs is not None and batch.group_ids is not None and batch.turns is not None  # in `needs`
        mask = batch.response_mask
        rewards = step_rewards(batch.old_log_probs - batch.ref_log_probs, batch.turns, mask, self.prm_beta)
        whole = rewards.sum(-1)
        groups = Groups(whole, batch.group_ids)
        others = (groups.sum(whole) - whole) / (groups.size - 1)
        to_go = rewards.flip(-1).cumsum(-1).flip(-1)  # every token of a step: the step's reward lies on its last token
        return batch.token_advantages + self.share * torch.where(mask, to_go - others.unsqueeze(-1), 0.0)
