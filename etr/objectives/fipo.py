"""FIPO: DAPO whose tokens count more when the policy has since made what followed them likelier.

Paper: "FIPO", 2603.19835, as implemented in ms-swift. With γ = 2^(−1/half_life),
    F_t = Σ_{s ≥ t} γ^(s−t)·log r_s,    f_t = sg[clip(exp F_t, weight_low, weight_high)]
    J   = token-mean[f_t·min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)]
Tokens with r > dual_clip are left out of F, and where A < 0 and r > safety the weight is kept within [0.8, 1].
half_life 32, weights within [1, 1.2], safety 4: ms-swift's defaults; ε and dual_clip = 10: those of DAPO's and the
method's scripts. On-policy F = 0, so f = 1; differs from `dapo` off-policy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Paper, Reduction, Scope
from etr.objectives.dapo import DAPO
from etr.ratios import LOG_RATIO_LIMIT
from etr.registry import register

SAFE = (0.8, 1.0)


@register("fipo")
@dataclass(frozen=True)
class FIPO(DAPO):
    """DAPO with each token's objective times clip(exp Σ_{s≥t} γ^(s−t)·log r_s, weight_low, weight_high)."""

    dual_clip: float | None = 10.0
    half_life: float = 32.0
    weight_low: float = 1.0
    weight_high: float = 1.2
    safety: float | None = 4.0

    paper: ClassVar[Paper] = Paper("FIPO", "2603.19835", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction("dapo", {"weight_low": 1.0, "weight_high": 1.0})
    examples = ({"weight_low": 0.8, "dual_clip": None, "safety": None},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "half_life", 0.0, 1e9, open_low=True)
        check_range(self, "weight_low", 0.0, 1.0)
        check_range(self, "weight_high", 1.0, 1e9)

    @property
    def scope(self) -> Scope:
        return "row"

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.weight_low == self.weight_high:
            return super().exceptions
        return {
            **super().exceptions,
            "pessimistic": "a weight other than 1 may raise the objective above r·A",
            "finite_differences": "the weight is a stop-gradient, so c is not the derivative of the value",
        }

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        weight = self._influence(log_ratio, batch.token_advantages).detach()  # the paper's: not optimised through
        return weight * super().surrogate(batch, log_ratio, region)

    def _influence(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        ratio = log_ratio.exp()
        counted = log_ratio if self.dual_clip is None else torch.where(ratio > self.dual_clip, 0.0, log_ratio)
        future = discounted(counted, 2 ** (-1 / self.half_life)).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        weight = future.exp().clamp(self.weight_low, self.weight_high)
        if self.safety is None:
            return weight
        return torch.where((advantages < 0) & (ratio > self.safety), weight.clamp(*SAFE), weight)


def discounted(values: Tensor, gamma: float) -> Tensor:
    """Σ_{s ≥ t} γ^(s−t)·x_s along the last dimension, in log₂ T additions of the whole tensor to itself, shifted."""
    step, total = 1, values
    while step < total.shape[-1]:
        total = total + gamma**step * pad(total, (0, step))[..., step:]
        step *= 2
    return total
