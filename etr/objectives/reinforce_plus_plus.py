"""REINFORCE++: PPO's clip with returns per token, normalised over all tokens of the batch instead of a group.

    r_t = −β·(log π_old − log π_ref)_t + R·[t is the last token]          k1, a penalty inside the reward
    G_t = Σ_{k≥t} γ^{k−t} r_k,    A_t = (G_t − mean) / (std + 1e-6)        over all kept tokens of the batch
    J   = token-mean[min(r·A, clip(r, 1−ε, 1+ε)·A)]

Paper: Hu, "REINFORCE++", 2501.03262. Steps are counted in kept tokens. Defaults: ε = 0.2 and γ = 1 as PPO's for LLMs;
β = 0: ours, none was found. OUR choice: the population std, with 1e-6 beside it (others: the sample's, 1e-8 below the
root). Differs from GRPO: no group, so one response per prompt is enough, an easy prompt's right answers keep A > 0,
and a hard prompt's wrong answers A < 0. Whitening counts long responses more often.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Category, Paper, Reduction
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref
from etr.shaping import Shaping

EPS = 1e-6


@register("reinforce_plus_plus")
@dataclass(frozen=True)
class REINFORCEPlusPlus(Shaping, PPO):
    """PPO's J with A_t = whitened Σ_k γ^{k−t} r_k, the KL to the reference inside the reward."""

    aggregation: str = "token-mean"
    beta: float = 0.0
    gamma: float = 1.0

    paper: ClassVar[Paper] = Paper("REINFORCE++", "2501.03262", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = None
    examples = (*PPO.examples, {"beta": 0.1}, {"gamma": 0.9})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "gamma", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards"} | ({"ref_log_probs"} if self.beta > 0 else set())

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """(R − mean)/(std + 1e-6) over the responses of the batch: what `shape` gives for equal lengths."""
        return whitened(rewards.unsqueeze(-1), torch.ones_like(rewards, dtype=torch.bool).unsqueeze(-1)).squeeze(-1)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None  # in `needs`
        mask = batch.response_mask
        last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
        reward = torch.where(last, batch.rewards.unsqueeze(-1).to(batch.old_log_probs.dtype), 0.0)
        if self.beta > 0:
            assert batch.ref_log_probs is not None  # in `needs`
            reward = reward - self.beta * kl_policy_to_ref(batch.old_log_probs, batch.ref_log_probs, "k1")
        return whitened(returns(reward, mask, self.gamma), mask)


def returns(reward: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + γ·G_{t+1} over the kept tokens, `[*R, B, T]`; 0 on padding."""
    ahead, found = torch.zeros_like(reward[..., 0]), []
    for now, kept in zip(reward.unbind(-1)[::-1], mask.unbind(-1)[::-1], strict=True):
        ahead = torch.where(kept, now + gamma * ahead, ahead)
        found.append(torch.where(kept, ahead, 0.0))
    return torch.stack(found[::-1], -1)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """(x − mean)/(std + 1e-6) over the kept values of a run, 0 elsewhere and where all are equal."""
    centred = values - masked.mean(values, mask)
    return torch.where(mask, centred / (masked.std(values, mask) + EPS), 0.0)
