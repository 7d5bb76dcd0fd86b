"""BAPO: bounds that are moved at every update until right answers carry their share of the objective.

    r_eff = min(r, c_high) if A > 0, max(r, c_low) if A < 0
    P = Σ r_eff·A over A > 0,   Q = Σ r_eff·|A| over A < 0                 all tokens of the update
    from 1−ε_low, 1+ε_high, while P < target·Q: raise c_low by steps to 1−low_least, then c_high to 1+high_most
    J = agg[min(r·A, clip(r, c_low, c_high)·A)], at least dual_clip·A where A < 0

Paper: Xi et al., "BAPO: Balanced Policy Optimization with Adaptive Clipping", 2510.18927. Defaults: the ranges of its
README, c_low in [0.6, 0.9] and c_high in [1.2, 3.0], P/Q = 1 (share ½), dual clip 3; step 0.05 from its settings file
(which has other ranges: 0.8 and 2.0). A bound that starts beyond its end does not move.
`count` "value" is the authors' code as above. There a higher c_low makes Q larger, not smaller, so once P < target·Q
c_low goes to its end at once. "gradient" (OURS) counts the tokens that still have a gradient, r ≥ c_low and r ≤ c_high:
then both moves raise P/Q, as the paper argues.
The search is in `region`: it asks for the current ratios, which are all 1 before the first update and unknown to
whatever carries over from the last batch. So it is made anew at each of the K updates on a batch, from the tokens it
gets. P and Q have to be those of the whole batch, as the authors' are (summed over all ranks): `undivided` = "batch"
makes trainers refuse micro-batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.checks import check_choice, check_range
from etr.objective import Paper, Reduction, Scope
from etr.objectives.grpo import GRPO
from etr.registry import register

TITLE = (
    "BAPO: Stabilizing Off-Policy Reinforcement Learning for LLMs via Balanced Policy Optimization with Adaptive "
    "Clipping"
)
SLACK = 1e-9  # P and Q are equal, up to rounding, before the first update


@register("bapo")
@dataclass(frozen=True)
class BAPO(GRPO):
    """GRPO with [c_low, c_high] from a search for P ≥ target·Q."""

    eps_low: float = 0.4
    eps_high: float = 0.2
    dual_clip: float | None = 3.0
    low_least: float = 0.1
    high_most: float = 2.0
    step: float = 0.05
    target: float = 1.0
    count: str = "value"

    paper: ClassVar[Paper] = Paper(TITLE, "2510.18927", "verified")
    undivided = "batch"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"eps_low": 0.2, "low_least": 0.2, "eps_high": 0.2, "high_most": 0.2}
    )
    examples = ({"count": "gradient"}, {"dual_clip": None})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "count", ("value", "gradient"))
        check_range(self, "step", 1e-3, 1.0)
        check_range(self, "target", 0.0, 1e6)
        check_range(self, "low_least", 0.0, 1.0)
        check_range(self, "high_most", 0.0, 100.0)

    @property
    def scope(self) -> Scope:
        return "batch"

    @property
    def exceptions(self) -> Mapping[str, str]:
        fixed = self.low_least >= self.eps_low and self.high_most <= self.eps_high
        split = {} if fixed else {"splitting_is_exact": "a part of the batch would find bounds for its own tokens"}
        return {**super().exceptions, **split}

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        candidates = [regions.fixed(low, high, log_ratio) for low, high in self.path()]
        chosen = candidates[-1]
        ratio = log_ratio.detach().exp().double()  # the bounds are a rule, not something to optimise through
        for bounds in reversed(candidates[:-1]):
            enough = self.balanced(batch, ratio, bounds)
            chosen = Region(*(torch.where(enough, a, b) for a, b in zip(bounds, chosen, strict=True)))
        return chosen

    def path(self) -> list[tuple[float, float]]:
        """The half-widths in the order of the search: first the lower bound, then the upper."""
        lows = math.ceil((self.eps_low - self.low_least) / self.step - SLACK)
        highs = math.ceil((self.high_most - self.eps_high) / self.step - SLACK)
        down = [self.eps_low, *(max(self.eps_low - k * self.step, self.low_least) for k in range(1, lows + 1))]
        up = [min(self.eps_high + k * self.step, self.high_most) for k in range(1, highs + 1)]
        return [(low, self.eps_high) for low in down] + [(down[-1], high) for high in up]

    def balanced(self, batch: Batch, ratio: Tensor, bounds: Region) -> Tensor:
        """Is P ≥ target·Q with these bounds? Bool `[*R, 1, 1]`."""
        advantages = torch.where(batch.response_mask, batch.token_advantages, 0.0).double()
        if self.count == "value":
            up, down = ratio.clamp(max=bounds.high), ratio.clamp(min=bounds.low)
        else:
            up, down = ratio * (ratio <= bounds.high), ratio * (ratio >= bounds.low)
        right = (up * advantages.clamp(min=0.0)).sum((-2, -1), keepdim=True)
        wrong = (down * advantages.clamp(max=0.0)).sum((-2, -1), keepdim=True).abs()
        return right >= self.target * wrong * (1 - SLACK)
