"""STEER: tokens whose update would change entropy most count less.

    Ω_t = |A_t/π_old(y_t)·π(y_t)·(1 − π(y_t))·(log π(y_t) + H_t)|       first-order entropy change of the update
    exponential   w = e^{−k·Ω},  k = −log(w_min)/max(max Ω, 0.02)        in [w_min, 1]
    linear        w = w_max − (Ω − min Ω)/(max Ω − min Ω)·(w_max − w_min), 1 where all Ω are equal

Paper: Hao et al., "Rethinking entropy interventions in RLVR: an entropy change perspective", 2510.10150. w is a
constant that multiplies the clipped loss, here as A'_t = w_t·A_t, which is the same. Defaults: the authors' code, w_min
0.8 (and w_max 1.2, linear only); exponential is the paper's form. Ours: Ω is that of the policy that sampled (the two π
cancel) with extremes over the whole rollout batch, so that no split into micro-batches can change it.
Differs from GRPO by w.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

LEAST_SPAN = 0.02  # the authors' code: below it k stops growing
NO_SPAN = 1e-12  # of Ω: below it no token stands out, and all have w = 1 (linear)


@register("steer")
@dataclass(frozen=True)
class STEER(Shaping, GRPO):
    """GRPO with A' = w·A, w falling in Ω from w_max (linear) or 1 (exponential) to w_min."""

    weighting: str = "exponential"
    w_min: float = 0.8
    w_max: float = 1.2

    paper: ClassVar[Paper] = Paper("Rethinking Entropy Interventions in RLVR (STEER)", "2510.10150", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"w_min": 1.0, "w_max": 1.0})
    examples = ({"weighting": "linear"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "weighting", ("exponential", "linear"))
        check_range(self, "w_min", 0.0, 1.0, open_low=True)
        check_range(self, "w_max", 1.0, float("inf"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def change(self, batch: Batch) -> Tensor:
        """Ω of a clean batch at the old policy, 0 on padding."""
        assert batch.entropy is not None  # in `needs`
        log_p = batch.old_log_probs
        omega: Tensor = (batch.token_advantages * (1 - log_p.exp()) * (log_p + batch.entropy)).abs()
        return omega * batch.response_mask

    def shape(self, batch: Batch) -> Tensor:
        omega, mask = self.change(batch), batch.response_mask
        if self.weighting == "linear":
            weight = self.w_max - masked.unit(omega, mask) * (self.w_max - self.w_min)
            span = masked.largest(omega, mask) - masked.least(omega, mask)
            weight = torch.where(span < NO_SPAN, 1.0, weight)
        else:
            k = -math.log(self.w_min) / masked.largest(omega, mask).clamp(min=LEAST_SPAN)
            weight = (-k * omega).exp()
        return weight * batch.token_advantages
