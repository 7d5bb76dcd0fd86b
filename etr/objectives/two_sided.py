"""Two-sided GRPO: a bad response's ratio is bounded as well, at δ, where GRPO's clip leaves it free.

    J = agg[min(min(r, δ)·A, clip(r, 1−ε_low, 1+ε_high)·A)],   δ ≥ 1 + ε_high

Paper: Prime Intellect, "INTELLECT-2", 2505.07291; TRL's setting `delta`. With δ ≥ 1 + ε_high, as is meant, the bound is
reached for A < 0 only, where the value is δ·A: the dual clip of PPO with c = δ, and `dual_clip` is its name here.
Default: δ = 4 and ε = 0.2, the paper's by TRL's list (with β = 0.001; here β = 0 as everywhere).
Differs from GRPO: c = 0 where A < 0 and r > δ, so that one token cannot blow up an update.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from etr.errors import FieldError
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("two_sided")
@dataclass(frozen=True)
class TwoSided(GRPO):
    """J = agg[min(min(r, dual_clip)·A, clip(r)·A)]."""

    dual_clip: float | None = 4.0

    paper: ClassVar[Paper] = Paper("INTELLECT-2 (two-sided GRPO clipping)", "2505.07291", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"dual_clip": None})
    examples = ({"dual_clip": 1.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        least = 1 + self.eps_high  # below it δ would bound right answers too, which the dual clip does not
        if self.dual_clip is not None and self.dual_clip < least:
            raise FieldError(
                f"TwoSided.dual_clip is {self.dual_clip:g}, below {least:g}; give dual_clip >= 1 + eps_high, or null"
            )
