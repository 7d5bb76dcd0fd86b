"""ADPO: the group's answers shall be as likely, relative to where they started, as their rewards say.

Paper: "ADPO: Anchored Direct Preference Optimization", 2510.18913. RECONSTRUCTED from one line (a listwise KL to a
softmax of anchored logits) and others' code. With the anchor π_old and, of the G answers to a prompt,
    u_i = Σ_t (log π − log π_old)/τ,    p = softmax(u),    q = softmax(z/reward_temperature)
    L   = −Σ_i q_i·log p_i, averaged over groups,    c_i = G·(q_i − p_i)/τ = A_i + (1 − G·p_i)/τ
with z the group's z-scores and A_i = (G·q_i − 1)/τ. L is KL(q ‖ p) but for a constant: a regression that stops at p = q
by itself, so no clip is needed, and that pulls a group without signal (q uniform) back to the anchor. The factor G
turns the mean over responses into one over groups. OURS: p, q and G are of the answers that have tokens, so that q sums
to 1 over what the loss has; z is of all. τ = 0.8 and reward_temperature = 0.5: others' code, whose
temperature that adapts to entropy and success is not here.
Not Adaptive or Advantage DPO, which share the acronym.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages, ratios
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.groups import Groups
from etr.listwise import Listwise
from etr.objective import Objective, Paper
from etr.registry import register
from etr.within import group_logsumexp, group_sum, listwise, responses


@register("adpo")
@dataclass(frozen=True)
class ADPO(Listwise, Objective):
    """L = −Σ_i q_i·log softmax(Σ_t log r/tau)_i of each group, q = softmax(z/reward_temperature)."""

    aggregation: str = "seq-mean-token-sum"
    tau: float = 0.8
    reward_temperature: float = 0.5

    paper: ClassVar[Paper] = Paper("Anchored Direct Preference Optimization", "2510.18913", "reconstructed")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", 0.0, 1e9, open_low=True)
        check_range(self, "reward_temperature", 0.1, 1e9)  # below it exp(z/temperature) overflows for groups of 64

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {
            **super().exceptions,
            "no_advantage_no_gradient": "A = 0 is a uniform target, which pulls back to the anchor",
            "gradient_follows_advantage": "an answer that overshot its target is pulled back, by design",
        }

    def counted(self, rewards: Tensor, group_ids: Tensor, there: Tensor) -> Tensor:
        groups, z = Groups(rewards, group_ids), advantages.group_zscore(rewards, group_ids)
        likes = torch.where(there, (z / self.reward_temperature).exp(), 0.0)
        total, size = groups.sum(likes), groups.sum(there.to(rewards.dtype))
        return torch.where(there, (size * likes / torch.where(total > 0, total, 1.0) - 1) / self.tau, 0.0)

    def ratio(self, batch: Batch) -> Tensor:
        """log of the whole response's ratio, on each of its tokens."""
        total = ratios.token(batch).sum(-1, keepdim=True).clamp(-ratios.LOG_RATIO_LIMIT, ratios.LOG_RATIO_LIMIT)
        return torch.where(batch.response_mask, total, 0.0)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        assert batch.group_ids is not None  # in `needs`
        score, advantage, there = responses(batch, log_ratio)
        score, ids = score / self.tau, batch.group_ids
        log_p = score - group_logsumexp(score, ids, there)
        size = group_sum(there.to(score.dtype), ids).clamp(min=1)
        target = (1 + self.tau * advantage) / size
        loss = -group_sum(torch.where(there, target * log_p, 0.0), ids) / batch.response_mask.sum(-1).clamp(min=1)
        excess = torch.where(there, (1 - size * log_p.exp()) / self.tau, 0.0)
        return listwise(batch, batch.token_advantages + excess.unsqueeze(-1), loss)
