"""VESPO: each response weighted by a smooth function of its whole importance ratio, which is 1 on-policy.

Paper: "VESPO", 2602.10693. With W = Π_t r_t of the response, no root and no clip,
    φ(W) = exp(λ + k·log W − λ·W),    J = token-mean[sg[φ(W)]·A·log π]
φ(1) = 1, φ → 0 both for W → 0 (as W^k) and for W → ∞; its peak lies at W = k/λ: below 1 for A ≥ 0, above for A < 0.
(k, λ) = (2, 3) for A ≥ 0 and (3, 2) for A < 0, and z-scored advantages: TRL's defaults. As in TRL log r is kept within
±20 for each token and their sum within [ln 1e-8, 20]. There W also contains the rollout correction, which here
multiplies from outside. Differs from `reinforce` in φ, and from `cispo` in a weight per response that falls again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.batch import Batch, Region
from etr.checks import check_ranges
from etr.objective import Paper, Reduction, Scope
from etr.objectives.reinforce import REINFORCE
from etr.ratios import LOG_RATIO_LIMIT
from etr.registry import register

LEAST = math.log(1e-8)
PARAMETERS = ("k_pos", "lambda_pos", "k_neg", "lambda_neg")


@register("vespo")
@dataclass(frozen=True)
class VESPO(REINFORCE):
    """J = token-mean[sg[exp(λ + k·log W − λ·W)]·A·log π], W = Π_t r_t."""

    k_pos: float = 2.0
    lambda_pos: float = 3.0
    k_neg: float = 3.0
    lambda_neg: float = 2.0

    paper: ClassVar[Paper] = Paper("VESPO", "2602.10693", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", dict.fromkeys(PARAMETERS, 0.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, 0.0, 1e9, *PARAMETERS)

    @property
    def scope(self) -> Scope:
        return "row"

    @property
    def exceptions(self) -> Mapping[str, str]:
        reason = "the weight is a stop-gradient, so c is not the derivative of the value"
        return {**super().exceptions, "finite_differences": reason}

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_zscore(rewards, group_ids)

    def ratio(self, batch: Batch) -> Tensor:
        """log W, on each token of the response."""
        total = super().ratio(batch).sum(-1, keepdim=True).clamp(LEAST, LOG_RATIO_LIMIT)
        return torch.where(batch.response_mask, total, 0.0)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantage, log_w = batch.token_advantages, log_ratio.detach()  # the paper's stop-gradient: a weight
        positive = self._phi(log_w, self.k_pos, self.lambda_pos)
        weight = torch.where(advantage >= 0, positive, self._phi(log_w, self.k_neg, self.lambda_neg))
        return weight * super().surrogate(batch, log_ratio, region)

    @staticmethod
    def _phi(log_w: Tensor, k: float, rate: float) -> Tensor:
        return (k * log_w - rate * (log_w.exp() - 1)).exp()
