"""Optimal token baseline (OTB): a baseline for every position, weighted by the gradient energy up to there.

    W_{i,t} = Σ_{s≤t} (1 − 2·p_{i,s} + Σ_v π(v)²)
    B_t     = Σ_i R_i·W_{i,t} / Σ_i W_{i,t}   over the responses of the group that still run at t
    A_{i,t} = R_i − B_t

Paper: Li et al., "The Optimal Token Baseline: Variance Reduction for Long-Horizon LLM-RL", 2602.07078. The reward comes
at the end, so the return G_t is R on every token. Read in verl's estimator `optimal_token_baseline`, together with
PPO's clip and token mean. zero_tail: where only the longest response still runs, B_t = 0 instead of its own R, so that
its tail has A = R and not 0; verl 0.9.1's default, other versions have it off. Where no W is left (a policy without
choice) B_t is the plain mean; verl's is 0, and the gradient is 0 in any case. Groups of equal rewards have A = 0, apart
from such a tail. It differs from `optimal_baseline` in having a baseline per position, with one's own reward in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.baselines import squared_scores
from etr.batch import Batch
from etr.groups import Groups
from etr.objective import Paper
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping


@register("optimal_token_baseline")
@dataclass(frozen=True)
class OptimalTokenBaseline(Shaping, PPO):
    """PPO's clip with A_t = R − Σ W_t·R/Σ W_t over the responses that reach t, W_t = Σ_{s≤t} (1 − 2p + Σ π²)."""

    zero_tail: bool = True

    paper: ClassVar[Paper] = Paper("The Optimal Token Baseline (OTB)", "2602.07078", "verified")
    category = "advantage"
    examples = ({"zero_tail": False},)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids", "full_log_probs"})

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_center(rewards, group_ids)

    def shape(self, batch: Batch) -> Tensor:
        rewards, ids, full, mask = batch.rewards, batch.group_ids, batch.full_log_probs, batch.response_mask
        assert rewards is not None and ids is not None and full is not None
        energy = squared_scores(batch.old_log_probs, full, mask).cumsum(-1)
        weights = torch.where(mask, energy, 0.0).to(rewards.dtype)
        here = mask.to(rewards.dtype)
        returns = rewards.unsqueeze(-1).expand_as(weights)
        at = Columns(rewards, ids)
        weight, running = at.sum(weights), at.sum(here)
        some = weight > 0
        weighted = at.sum(weights * returns) / torch.where(some, weight, 1.0)
        baseline = torch.where(some, weighted, at.sum(here * returns) / running.clamp(min=1))
        dead = Groups(rewards, ids).homogeneous(rewards).unsqueeze(-1)
        shaped = torch.where(dead, 0.0, returns - baseline)
        if self.zero_tail:
            shaped = torch.where(running == 1, returns, shaped)
        return torch.where(mask, shaped, 0.0)


class Columns:
    """Sums over the group at every position: values `[*R, B, T]`."""

    def __init__(self, rewards: Tensor, group_ids: Tensor) -> None:
        self.groups = Groups(rewards, group_ids)

    def sum(self, values: Tensor) -> Tensor:
        return torch.stack([self.groups.sum(column) for column in values.unbind(-1)], -1)
