"""GSPO-token: GSPO's ratio of the whole response in the value, each token's own gradient, so tokens may differ in A.

    s_{i,t} = sg[s_i]·π/sg[π],   s_i = exp((1/T_i) Σ_t log r_{i,t})
    J = (1/G) Σ_i (1/T_i) Σ_t min(s_{i,t}·A_{i,t}, clip(s_{i,t}, 1−ε_low, 1+ε_high)·A_{i,t})

Paper: Zheng et al., "Group Sequence Policy Optimization", 2507.18071 (its token variant).
Defaults: GSPO's ε = 3e-4 and 4e-4. With one advantage per response and its mean over tokens the gradient is GSPO's.
Differs from `gspo`: the gradient of s is taken token by token instead of through the mean, so c_t = s_i·A_t.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios
from etr.batch import Batch
from etr.objective import Paper, Reduction
from etr.objectives.gspo import GSPO
from etr.registry import register


@register("gspo_token")
@dataclass(frozen=True)
class GSPOToken(GSPO):
    """J = mean_i mean_t min(s_{i,t}·A, clip(s_{i,t})·A) with the gradient of each token's own log π."""

    paper: ClassVar[Paper] = Paper("Group Sequence Policy Optimization (token variant)", "2507.18071", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("gspo", {}, single_token=True)

    def ratio(self, batch: Batch) -> Tensor:
        shared = ratios.sequence(batch).detach()  # sg[s_i]: the value of every token's ratio
        own = batch.log_probs - batch.log_probs.detach()  # 0, with the gradient of the token alone
        return torch.where(batch.response_mask, shared + own, 0.0)
