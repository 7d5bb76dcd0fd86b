"""SAPO: a smooth gate in the place of the clip: the further a token has moved, the less it still counts.

    J = agg[f(r)·A],   f(r) = (4/τ)·σ(τ·(r − 1)),   τ = τ_pos where A > 0, τ_neg elsewhere
    f'(r) = sech²(τ·(r − 1)/2):   1 at r = 1, 0.79 at r = 2 for τ = 1, and never 0

Paper: Gao et al., "Soft Adaptive Policy Optimization", 2511.20347. Defaults: τ_pos = 1, τ_neg = 1.05 (verl, TRL). One
description of it leaves out the factor 4/τ, without which c is not A at the start.
Differs from GRPO: c = A·r·sech²(τ(r − 1)/2) instead of A·r inside an interval and 0 beyond; wrong answers decay
a little faster, because what they free spreads over all other tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Objective, Paper
from etr.registry import register


@register("sapo")
@dataclass(frozen=True)
class SAPO(Objective):
    """J = agg[(4/τ)·σ(τ(r − 1))·A]."""

    tau_pos: float = 1.0
    tau_neg: float = 1.05

    paper: ClassVar[Paper] = Paper("Soft Adaptive Policy Optimization", "2511.20347", "verified")
    examples = ({"tau_pos": 4.0, "tau_neg": 8.0},)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tau_pos", "tau_neg"):
            check_range(self, name, 0.0, 1e6, open_low=True)

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "the gate's value at r = 1 is 2/τ·A, a level that no gradient sees"}

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantages = batch.token_advantages
        pos, neg = (regions.number(tau, log_ratio) for tau in (self.tau_pos, self.tau_neg))
        tau = torch.where(advantages > 0, pos, neg)
        return 4 / tau * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages
