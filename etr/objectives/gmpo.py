"""GMPO: the geometric mean of the tokens' clipped ratios, so that no single token rules a response.

    ℓ̃_t = min(ℓ_t, ε_2) if A ≥ 0, max(ℓ_t, −ε_1) if A < 0          ℓ_t = log r_t: clipped per token, one-sided
    J = (1/G) Σ_i A_i·exp((1/T_i) Σ_t ℓ̃_t)

Paper: Zhao et al., "Geometric-Mean Policy Optimization", 2507.20673. Defaults: the authors' script, ε_1 = ε_2 = 0.4,
here `log_low` and `log_high`, because they bound log r: the interval of r is [e^−0.4, e^0.4].
Differs from GSPO: clipping comes before the mean and token by token; a clipped token loses its gradient, the others
of the response keep theirs. From GRPO: a geometric instead of an arithmetic mean over the response.
One advantage per response is meant; with token advantages each token clips by its own sign (OUR choice).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios, regions
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Objective, Paper, Reduction, Scope
from etr.registry import register

WIDE = ratios.LOG_RATIO_LIMIT


@register("gmpo")
@dataclass(frozen=True)
class GMPO(Objective):
    """J = mean_i A_i·exp(mean_t ℓ̃_t)."""

    log_low: float = 0.4
    log_high: float = 0.4

    paper: ClassVar[Paper] = Paper("Geometric-Mean Policy Optimization", "2507.20673", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "gspo", {"log_low": WIDE, "log_high": WIDE}, {"eps_low": 1.0, "eps_high": 1e30}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("log_low", "log_high"):
            check_range(self, name, 0.0, WIDE)

    @property
    def scope(self) -> Scope:
        return "row"

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "a token has its response's mean ratio: the mean is below s_i·A, not every token's r·A"}

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        return Region(*(regions.number(x, log_ratio).exp() for x in (-self.log_low, self.log_high)))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantages, mask = batch.token_advantages, batch.response_mask
        one_sided = torch.where(advantages < 0, log_ratio.clamp(min=-self.log_low), log_ratio.clamp(max=self.log_high))
        mean = one_sided.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
        return torch.where(mask, mean, 0.0).exp() * advantages
