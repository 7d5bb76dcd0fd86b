"""ETR, implicit reading: only the micro level, linear; the macro level emerges because mean|A| = 2√(p(1−p)).

RECONSTRUCTED reading of 2601.03723, whose abstract says the macro budget arises "implicitly".
    ε_i = clamp(ε·(1 + λ_mic·(|A_i| − 1)), ε_min, ε_max); with λ_mic = 1 simply ε·|A_i|.
The mean of ε·|A_i| over a group is 2ε√(p(1−p)), largest for prompts of medium difficulty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction
from etr.objectives.etr import PAPER
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("etr_implicit")
@dataclass(frozen=True)
class ETRImplicit(GRPO):
    """GRPO with ε_i = clamp(ε·(1 + micro·(|A_i| − 1)), eps_min, eps_max)."""

    micro: float = 1.0
    eps_min: float = 0.05
    eps_max: float = 0.5

    paper: ClassVar[Paper] = PAPER
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"micro": 0.0})

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        signal = batch.token_advantages.abs().detach()  # the region is a rule, not something to optimise through
        scale = 1 + self.micro * (signal - 1)
        return regions.elastic(scale, self.eps_low, self.eps_high, self.eps_min, self.eps_max)
