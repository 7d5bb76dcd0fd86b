"""BNPO, TRL's loss type: GRPO whose mean over tokens is taken in every micro-batch by itself.

    J = mean over micro-batches of [Σ m·min(r·A, clip(r, 1−ε, 1+ε)·A) / Σ m]

Source: TRL's `loss_type="bnpo"`; TRL names it after 2506.02864, but that paper is about advantages: it is the objective
`bnpo_beta`. On a whole batch it is the token mean of DAPO. In parts, tokens of a part with few tokens weigh more, so
the gradient depends on the split. Micro-batches count by their number of responses, which for equal ones is TRL's
plain mean over micro-batches; for unequal ones it is OUR choice.
Defaults: TRL's ε = 0.2, β = 0. Differs from GRPO in the aggregation alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register

LOCAL = "local-token-mean"


@register("bnpo")
@dataclass(frozen=True)
class BNPO(GRPO):
    """J = mean over micro-batches of token-mean[min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)]."""

    aggregation: str = LOCAL

    paper: ClassVar[Paper] = Paper("TRL's loss type bnpo (GRPO with a local token mean)", "", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"aggregation": "seq-mean-token-mean"})
    examples = ({"eps_high": 0.28},)

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.aggregation != LOCAL:
            return super().exceptions
        return {**super().exceptions, "splitting_is_exact": "each micro-batch is averaged over its own tokens"}

    def denominator(self, mask: Tensor) -> Tensor:
        whole = super().denominator(mask)
        return torch.full_like(whole, mask.shape[-2]) if self.aggregation == LOCAL else whole

    def aggregate(self, x: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
        if self.aggregation == LOCAL:
            denominator = denominator / mask.shape[-2]  # 1 over this part's share of the responses
        return super().aggregate(x, mask, denominator)
