"""DCPO (distribution-centric): GRPO drawn towards a tempered copy of its own policy, hot while entropy is low.

    ρ_t = π_old^T(y_t)/π_old(y_t),   T = 1.2 if H̄ ≤ H₀ else 0.8
    a = min(|H₀ − H̄|, 0.1)/(share of right answers),   α = a/(1 + a)
    A'_{i,t} = (1 − α)·A_i + α·1[R_i > 0.05]·ρ_t, then the clipped loss

Paper: Li et al., "Distribution-centric policy optimization dominates exploration-exploitation trade-off", 2601.12730.
ρ corrects from the samples to the tempered policy and r_t from the old to the current one, hence double importance
sampling. Defaults: the authors' script: T 1.2 and 0.8, the cap 0.1, H₀ = 0.5 (the README: 0.25 is best for one model),
no KL. Ours: the statistics are those of the whole rollout batch; without any right answer α = 0, plain GRPO.
Not the DCPO of 2509.02333 (dynamic clipping). Differs from GRPO by A'; from aepo_arbitrary by α and the token's own ρ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_range
from etr.distributions import tempering
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

RIGHT = 0.05  # the authors' code counts rewards above this as right


@register("dcpo_distribution")
@dataclass(frozen=True)
class DCPODistribution(Shaping, GRPO):
    """GRPO with A' = (1 − α)·A + α·1[R > 0.05]·π^T/π; α grows with the distance of the mean entropy from `target`."""

    target: float = 0.5
    hot: float = 1.2
    cold: float = 0.8
    gap_limit: float = 0.1

    paper: ClassVar[Paper] = Paper("Distribution-Centric Policy Optimization", "2601.12730", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"gap_limit": 0.0})
    examples = ({"target": 3.0}, {"gap_limit": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "gap_limit", 0.0, float("inf"))
        for name in ("hot", "cold"):
            check_range(self, name, 0.0, float("inf"), open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy", "full_log_probs", "rewards", "tokens"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None and batch.rewards is not None  # in `needs`
        mask, right = batch.response_mask, (batch.rewards > RIGHT).unsqueeze(-1).to(batch.old_log_probs.dtype)
        share = masked.mean(right, mask.any(-1, keepdim=True))
        gap = (self.target - masked.mean(batch.entropy, mask)).abs().clamp(max=self.gap_limit)
        some = share > 0
        alpha = torch.where(some, gap / torch.where(some, gap + share, 1.0), 0.0)  # a/(1 + a) = gap/(gap + share)
        ratio = tempering(batch, self.target, self.hot, self.cold).exp()
        return (1 - alpha) * batch.token_advantages + alpha * right * ratio
