"""BNPO, the paper: advantages divided by a Beta density that is fitted to the success rates of the batch.

    A_i = (R_i − p_q) / f_Beta(p_q; α, β)         p_q: success rate of the prompt's group, rewards in [0, 1]
    a = (M(1−M)/W − 1)·M,  b = (M(1−M)/W − 1)·(1−M)      M, W: mean and unbiased variance of p_q over the prompts
    α = max(1, 1 + a/3),   β = max(1, 1 + b/3)

Paper: "BNPO: Beta Normalization Policy Optimization", 2506.02864; formulas as in the authors' code. α = β = 1 is plain
centring (Dr. GRPO), α = β = 3/2 is proportional to 1/√(p(1−p)) (GRPO). 1/f is at most 1e6 (the authors' code); groups
without signal have A = 0. Defaults: the authors' script (ε = 0.2 and 0.28, dual clip 10, sum over the tokens).
OUR choice: with one prompt, or equal success rates everywhere (W = 0), the fit has no width and α = β = 1.
Differs from GRPO: the divisor comes from all prompts of the batch and not from the group's own spread.
Not TRL's loss type `bnpo`, which is about the mean over tokens: that is the objective `bnpo`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.groups import Groups, unit_rewards
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register

MOST = 1e6  # of 1/f_Beta


@register("bnpo_beta")
@dataclass(frozen=True)
class BNPOBeta(GRPO):
    """GRPO's loss with A_i = (R_i − p)/f_Beta(p; α, β)."""

    aggregation: str = "seq-mean-token-sum"
    eps_high: float = 0.28
    dual_clip: float | None = 10.0

    paper: ClassVar[Paper] = Paper("BNPO: Beta Normalization Policy Optimization", "2506.02864", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"aggregation": "seq-mean-token-mean", "eps_high": 0.2, "dual_clip": None}
    )
    examples = ({"dual_clip": None},)

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        centred = advantages.group_center(unit_rewards(rewards, "bnpo_beta fits success rates"), group_ids)
        rate = Groups(rewards, group_ids).mean(rewards).double()
        alpha, beta = fitted(rate, Groups(rewards, group_ids).size.double())
        return centred * (-log_density(rate, alpha, beta)).exp().clamp(max=MOST).to(centred.dtype)


def fitted(rate: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """α and β from the success rate and the size of each response's group; every group counts once, `[*R, 1]`."""
    share = 1 / size
    prompts = share.sum(-1, keepdim=True)
    mean = (rate * share).sum(-1, keepdim=True) / prompts
    spread = ((rate - mean).square() * share).sum(-1, keepdim=True)
    variance = spread / (prompts - 1).clamp(min=0.5)
    flat = (variance <= 1e-12) | (prompts < 1.5)
    strength = mean * (1 - mean) / torch.where(flat, 1.0, variance) - 1
    alpha, beta = (torch.where(flat, 1.0, (1 + strength * m / 3).clamp(min=1.0)) for m in (mean, 1 - mean))
    return alpha, beta


def log_density(p: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """log f_Beta(p; α, β); −∞ at p = 0 if α > 1, and at p = 1 if β > 1."""
    norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    return torch.xlogy(alpha - 1, p) + torch.xlogy(beta - 1, 1 - p) - norm
