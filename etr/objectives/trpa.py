"""TRPA: pairs of better and worse answers to a prompt, a preference loss on them, and a KL to the old policy.

    u_i = (1/T_i) Σ_t (log π − log π_ref);   h = c·β·(u_w − u_l) for each pair w better than l; c = 2.5 if w is right
    L = mean over pairs −log σ(h) + κ·mean k3(π ‖ π_old);   a group without pairs: −log σ(u_i) right, −log σ(−u_i) wrong

Paper: Su et al., "Trust Region Preference Approximation", 2504.04524. Defaults are the authors' script: β = 0.1
(`preference_beta`), κ = 0.001 (`kl_weight`), c = 2.5 (`top_weight`). Levels are the rewards themselves, "right" is a
reward of at least `top_reward` = 1.
OUR choice: the two answers of a pair may lie in different micro-batches, so the weights σ(−h) of the pairs are those at
the start of the update. Its first step is exactly the paper's; afterwards a weight would have moved by
c·β/4 = 0.06 for each nat of u. Every pair pulls at both answers:

    A_i = G·(1/pairs)·[Σ_l c_i·β·σ(−h_il) − Σ_w c_w·β·σ(−h_wi)],    J = (1/B) Σ_i A_i·(1/T_i) Σ_t log π − κ·k3

so that groups of equal size count the same. The optional √(KL + ¼) is left out: it is no sum over tokens.
Differs from DPO: all pairs of a sampled group, means over tokens, and the KL to π_old.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike, checks, surrogates
from etr.batch import Batch, Region
from etr.groups import Groups
from etr.objective import Objective, Paper
from etr.registry import register
from etr.regularizers import kl_policy_to_ref
from etr.shaping import Shaping


@register("trpa")
@dataclass(frozen=True)
class TRPA(Shaping, Objective):
    """J = agg[A·log π] − κ·k3(π ‖ π_old), A from the preference loss of all pairs of a group."""

    preference_beta: float = 0.1
    kl_weight: float = 0.001
    top_weight: float = 2.5
    top_reward: float = 1.0

    paper: ClassVar[Paper] = Paper("Trust Region Preference Approximation", "2504.04524", "verified")
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({"kl_weight": 0.1}, {"preference_beta": 0.3})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "preference_beta", "kl_weight", "top_weight")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_log_probs", "rewards", "group_ids"})

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "the objective A·log π has no ratio to be pessimistic about"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.ref_log_probs is not None  # in `needs`
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        length = batch.response_mask.sum(-1).clamp(min=1)
        margin = (batch.old_log_probs - batch.ref_log_probs).double().sum(-1) / length
        rewards = batch.rewards.double()
        right = rewards >= self.top_reward
        groups = Groups(rewards, batch.group_ids)
        together, theirs = alike.same(batch.group_ids), rewards.unsqueeze(-2)
        mine, scale = rewards.unsqueeze(-1), self.preference_beta * torch.where(right, self.top_weight, 1.0)
        gap = margin.unsqueeze(-1) - margin.unsqueeze(-2)
        above, below = together & (mine > theirs), together & (mine < theirs)
        up, down = scale.unsqueeze(-1), scale.unsqueeze(-2)  # c·β of the pair: its winner's
        pull = torch.where(above, up * torch.sigmoid(-up * gap), 0.0).sum(-1)
        push = torch.where(below, down * torch.sigmoid(down * gap), 0.0).sum(-1)
        number = groups.sum(above.sum(-1).double())
        paired = groups.size * (pull - push) / number.clamp(min=1)
        alone = torch.where(right, torch.sigmoid(-margin), -torch.sigmoid(margin))
        return torch.where(number > 0, paired, alone).to(batch.advantages.dtype)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return surrogates.policy_gradient(batch.log_probs, batch.token_advantages)

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.kl_weight == 0:
            return None
        return self.kl_weight * kl_policy_to_ref(batch.log_probs, batch.old_log_probs, "k3")
