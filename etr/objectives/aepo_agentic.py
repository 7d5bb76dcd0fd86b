"""AEPO (agentic): larger advantages on tokens of high entropy, and a clip that keeps the gradient of the clipped ones.

    A_{i,t} = A_i·(1 + a·z_{i,t}),   z = (H − mean H)/std H over the tokens of the batch
    J = min(r·A, clip(r, 1−ε_low, (1+ε_high)/sg[r]·r)·A)

Above 1 + ε_high and for A > 0 the value is PPO's, but the gradient is (1+ε_high)·A·∇log π instead of 0.
Paper: "Agentic Entropy-Balanced Policy Optimization", 2510.14545. THIRD-PARTY (a detailed note). a, ε not found there:
a = 0.3 is ours, ε GRPO's. For a·z < −1 the advantage changes its sign, as the formula says. Not AEPO "Arbitrary
Entropy Policy Optimization" (2510.08141), nor the RL stage of ARES. Its branching rollout is a sampler.
`keep_clipped` = False and entropy_weight = 0 is GRPO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping
from etr.surrogates import pessimistic_clip


@register("aepo_agentic")
@dataclass(frozen=True)
class AgenticAEPO(Shaping, GRPO):
    """GRPO with A·(1 + entropy_weight·z(H)), and gradient (1 + ε_high)·A above the region."""

    entropy_weight: float = 0.3
    keep_clipped: bool = True

    paper: ClassVar[Paper] = Paper("Agentic Entropy-Balanced Policy Optimization", "2510.14545", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"entropy_weight": 0.0, "keep_clipped": False})
    examples = ({"keep_clipped": False},)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    @property
    def exceptions(self) -> Mapping[str, str]:
        stopped = {"finite_differences": "above the region the gradient is kept by a stop-gradient, the value is not"}
        return {**super().exceptions, **(stopped if self.keep_clipped else {})}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        entropy, mask = batch.entropy, batch.response_mask
        spread = masked.std(entropy, mask)
        score = torch.where(mask & (spread > 0), entropy - masked.mean(entropy, mask), 0.0)
        return batch.token_advantages * (1 + self.entropy_weight * score / torch.where(spread > 0, spread, 1.0))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        if self.keep_clipped:
            one = (log_ratio - log_ratio.detach()).exp()  # the paper's stop-gradient: value 1, gradient ∇log π
            region = Region(region.low, region.high * one)
        return pessimistic_clip(log_ratio, batch.token_advantages, region, self.dual_clip)
