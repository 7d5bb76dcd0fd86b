"""BandPO: GRPO whose clip interval is a ball of a divergence, wide for rare tokens and narrow for likely ones.

    p = π_old(token);   g(r) = p·f(r) + (1−p)·f((1−rp)/(1−p))             f-divergence of token and rest
    [low, high] = {r : g(r) ≤ δ},  0 ≤ low ≤ 1 ≤ high ≤ min(1/p, 100)
    J = agg[min(r·A, clip(r, low, high)·A)]
    kl: f(u) = u − 1 − log u, by bisection;   tv: 1 ∓ δ/p;   chi2: 1 ∓ √(δ(1−p)/p)

Paper: Li et al., "BandPO", 2603.04918. For p → 1 KL's interval is [e^−δ, 1]. `relax`: never narrower than
[1−ε_low, 1+ε_high], which are used for nothing else. Defaults: the authors' script, KL, δ = 0.05, not relaxed, dual
clip 10.
OUR choice: the interval is found once for each rollout batch, for it depends on the old policy alone.
Differs from GRPO in the interval alone; from DPPO: a clip instead of a mask, and the ratio to the old policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import divergences, regions
from etr.batch import Batch, Region
from etr.checks import check_choice, check_range
from etr.objective import Paper, Reduction, Scope, State
from etr.objectives.grpo import GRPO
from etr.registry import register

TITLE = "BandPO: Bridging Trust Regions and Ratio Clipping via Probability-Aware Bounds for LLM Reinforcement Learning"
MOST = 100.0  # of the upper bound


@register("bandpo")
@dataclass(frozen=True)
class BandPO(GRPO):
    """GRPO with [low, high] = {r : g(r) ≤ delta}."""

    dual_clip: float | None = 10.0
    kind: str = "kl"
    delta: float = 0.05
    relax: bool = False

    paper: ClassVar[Paper] = Paper(TITLE, "2603.04918", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"delta": 0.0, "relax": True})
    examples = ({"kind": "tv"}, {"kind": "chi2"}, {"relax": True, "dual_clip": None})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", divergences.KINDS)
        check_range(self, "delta", 0.0, 1e9)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("band_low", "band_high")

    @property
    def scope(self) -> Scope:
        return "token"  # the columns are the token's own, made once

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        low, high = divergences.ball(batch.clean().old_log_probs, self.delta, self.kind)
        return batch.with_columns(band_low=low, band_high=high.clamp(max=MOST)), state

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        low, high = (batch.columns[name].to(log_ratio.dtype) for name in ("band_low", "band_high"))
        if self.relax:
            least = regions.fixed(self.eps_low, self.eps_high, log_ratio)
            low, high = torch.minimum(low, least.low), torch.maximum(high, least.high)
        return Region(low, high)
