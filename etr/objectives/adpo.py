"""ADPO: the group's answers shall be as likely, relative to where they started, as their rewards say.

Paper: "ADPO: Anchored Direct Preference Optimization", 2510.18913. RECONSTRUCTED from one line (a listwise KL to a
softmax of anchored logits) and others' code. With the anchor π_old and, of the G answers to a prompt,
    u_i = Σ_t (log π − log π_old)/τ,    p = softmax(u),    q = softmax(z/reward_temperature)
    L   = −Σ_i q_i·log p_i, averaged over groups,    c_i = G·(q_i − p_i)/τ = A_i + (1 − G·p_i)/τ
with z the group's z-scores and A_i = (G·q_i − 1)/τ. L is KL(q ‖ p) but for a constant: a regression that stops at p = q
by itself, so no clip is needed, and that pulls a group without signal (q uniform) back to the anchor. The factor G
turns the mean over responses into one over groups. τ = 0.8 and reward_temperature = 0.5: others' code, whose
temperature that adapts to entropy and success is not here.
Not Adaptive or Advantage DPO, which share the acronym.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages, masked, ratios
from etr.batch import Batch, Region
from etr.errors import FieldError
from etr.groups import Groups
from etr.objective import Objective, Paper, Scope
from etr.registry import register
from etr.within import group_logsumexp, group_sum


@register("adpo")
@dataclass(frozen=True)
class ADPO(Objective):
    """L = −Σ_i q_i·log softmax(Σ_t log r/tau)_i of each group, q = softmax(z/reward_temperature)."""

    aggregation: str = "seq-mean-token-sum"
    tau: float = 0.8
    reward_temperature: float = 0.5

    paper: ClassVar[Paper] = Paper("Anchored Direct Preference Optimization", "2510.18913", "reconstructed")

    undivided = "group"
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tau <= 0:
            raise FieldError(f"ADPO.tau is {self.tau:g}; give a number above 0")
        if self.reward_temperature < 0.1:  # beyond it exp(z/temperature) overflows for groups of 64
            raise FieldError(f"ADPO.reward_temperature is {self.reward_temperature:g}; give a number of at least 0.1")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"group_ids"})

    @property
    def scope(self) -> Scope:
        return "batch"

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {
            "no_advantage_no_gradient": "A = 0 is a uniform target, which pulls back to the anchor",
            "gradient_follows_advantage": "an answer that overshot its target is pulled back, by design",
            "pessimistic": "the value is the loss of the group, not a bound on r·A",
            "splitting_is_exact": "answers are compared within their group, so a group must not be split",
        }

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        groups = Groups(rewards, group_ids)
        likes = (advantages.group_zscore(rewards, group_ids) / self.reward_temperature).exp()
        return (groups.size * likes / groups.sum(likes) - 1) / self.tau

    def ratio(self, batch: Batch) -> Tensor:
        """log of the whole response's ratio, on each of its tokens."""
        total = ratios.token(batch).sum(-1, keepdim=True).clamp(-ratios.LOG_RATIO_LIMIT, ratios.LOG_RATIO_LIMIT)
        return torch.where(batch.response_mask, total, 0.0)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        assert batch.group_ids is not None  # in `needs`
        mask, ids = batch.response_mask, batch.group_ids
        score = masked.mean(log_ratio.detach(), mask, dim=-1).squeeze(-1) / self.tau  # weights and value only
        advantage = masked.mean(batch.token_advantages.expand_as(log_ratio), mask, dim=-1).squeeze(-1)
        log_p = score - group_logsumexp(score, ids, mask.any(-1))
        size = group_sum(mask.any(-1).to(score.dtype), ids).clamp(min=1)
        target = (1 + self.tau * advantage) / size
        loss = -group_sum(torch.where(mask.any(-1), target * log_p, 0.0), ids) / mask.sum(-1).clamp(min=1)
        pull = (batch.token_advantages + ((1 - size * log_p.exp()) / self.tau).unsqueeze(-1)) * batch.log_probs
        return pull - pull.detach() - loss.unsqueeze(-1)  # the loss as value, each answer's own share as gradient
