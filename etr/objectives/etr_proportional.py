"""ETR, proportional reading: the radius is proportional to the centred reward.

RECONSTRUCTED reading of 2601.03723: a second-order expansion ΔJ(ε) ≈ |A|ε − (κ/2)ε² has its maximum at ε ∝ |A|, and
the variance level scales by 2√v. For z-scored 0/1 rewards |A_i|·2√v = 2|R_i − p|, so
    ε_i = clamp(ε·|A_i|·2√v_i, ε_min, ε_max) = clamp(2ε·|R_i − p|, ε_min, ε_max).
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


@register("etr_proportional")
@dataclass(frozen=True)
class ETRProportional(GRPO):
    """GRPO with ε_i = clamp(ε·|A_i|·2√v_i, eps_min, eps_max)."""

    eps_min: float = 0.05
    eps_max: float = 0.5

    paper: ClassVar[Paper] = PAPER
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"eps_min": 0.2, "eps_max": 0.2})

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group"}

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        assert batch.group is not None  # in `needs`
        signal = batch.token_advantages.abs().detach()  # the region is a rule, not something to optimise through
        scale = signal * 2 * batch.group.var.sqrt().unsqueeze(-1).to(signal.dtype)
        return regions.elastic(scale, self.eps_low, self.eps_high, self.eps_min, self.eps_max)
