"""PSPO: probabilities smoothed towards the old policy, which shrinks every move by one factor and clips nothing.

    π̃ = (1−α)·π + α·π_old,   r̃ = π̃/π_old = (1−α)·r + α;   J = agg[r̃·A],   c = (1−α)·r·A

Paper: Dwyer et al., "It's Not You, It's Clipping", 2509.21282. Default: the paper's α = 0.1; z-scores and the mean
over responses are GRPO's. The author's code is an offer to TRL.
Differs from GRPO: no interval; the gradient is (1−α) times that of r·A everywhere. With a fixed learning rate and an
optimiser that does not rescale this is a smaller step and nothing else: α does not bound the ratio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Objective, Paper, Reduction
from etr.registry import register

TITLE = "It's Not You, It's Clipping: A Soft Trust-Region via Probability Smoothing for LLM RL"


@register("pspo")
@dataclass(frozen=True)
class PSPO(Objective):
    """J = agg[((1 − alpha)·r + alpha)·A]."""

    alpha: float = 0.1

    paper: ClassVar[Paper] = Paper(TITLE, "2509.21282", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("trpo", {"alpha": 0.0}, {"beta": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "alpha", 0.0, 1.0)

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.alpha == 0:
            return {}
        return {
            "on_policy": "smoothing makes every gradient smaller by the factor 1 − α, also the first",
            "pessimistic": "the smoothed ratio is above r wherever r < 1",
        }

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return ((1 - self.alpha) * log_ratio.exp() + self.alpha) * batch.token_advantages
