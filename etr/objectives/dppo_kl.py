"""DPPO-KL: DPPO whose mask measures the move of a token by KL(μ ‖ π) instead of total variation.

    J = agg[M·sg[min(r, C)]·A·log π],   r = π/μ                           as in `dppo_tv`
    binary: D = μ·log(μ/π) + (1−μ)·log((1−μ)/(1−π)) of the sampled token against all others
    topk:   D = Σ_k μ_k·log(μ_k/π_k) over the likeliest tokens and the rest, masses at least 1e-12

Paper: "Rethinking the Trust Region in LLM RL", 2602.04879. Defaults: verl's example, δ = 0.05.
Differs from `dppo_tv`: near probability 0 and 1 KL counts relative moves, so it is stricter with likely tokens. The
binary mask is BandPO's KL interval (`etr.divergences`), found by bisection.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from etr.objective import Paper, Reduction
from etr.objectives.dppo_tv import DPPOTV, OPEN
from etr.registry import register


@register("dppo_kl")
@dataclass(frozen=True)
class DPPOKL(DPPOTV):
    """J = agg[M·sg[min(r, C)]·A·log π] with M by KL(μ ‖ π)."""

    delta_low: float = 0.05
    delta_high: float = 0.05

    divergence: ClassVar[str] = "kl"
    paper: ClassVar[Paper] = DPPOTV.paper
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "cispo", {**OPEN, "kind": "topk"}, {"eps_low": 1.0, "eps_high": 4.0}
    )
