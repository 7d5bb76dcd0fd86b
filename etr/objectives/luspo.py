"""LUSPO: GSPO without its preference for short answers: each response counts with its length.

Paper: Liu et al., "Length-Unbiased Sequence Policy Optimization", 2602.05261.
    J = (1/B) Σ_i T_i·min(s_i·A_i, clip(s_i, 1−ε_low, 1+ε_high)·A_i),    s_i = exp((1/T_i) Σ_t log r_{i,t})
∇s_i carries a factor 1/T_i, which T_i takes away again: every token has the same pull, in whatever answer it stands.
ε = (2e-3, 2.5e-3): the paper's section 5.1 as quoted in TRL's paper index. Differs from `gspo` in the factor T_i, which
is the aggregation seq-mean-token-sum, and in ε.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from etr.objective import Paper, Reduction
from etr.objectives.gspo import GSPO
from etr.registry import register


@register("luspo")
@dataclass(frozen=True)
class LUSPO(GSPO):
    """J = mean_i T_i·min(s_i·A_i, clip(s_i, 1−ε_low, 1+ε_high)·A_i)."""

    aggregation: str = "seq-mean-token-sum"
    eps_low: float = 2e-3
    eps_high: float = 2.5e-3

    paper: ClassVar[Paper] = Paper("Length-Unbiased Sequence Policy Optimization", "2602.05261", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("gspo", {"aggregation": "seq-mean-token-mean"})
