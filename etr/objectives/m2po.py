"""M2PO: the widest clip for which the second moment of log r over the harmful tokens stays within a budget.

Paper: Zheng et al., "Prosperity before Collapse: How Far Can Off-Policy RL Reach with Stale Data on LLMs?", 2510.01161.
Harmful tokens have already moved where A pushes them: A > 0 and r > 1, or A < 0 and r < 1. With N of them,
    τ = the largest number with (1/N) Σ min(log²r, τ²) ≤ budget      (∞ if all of log²r stays within)
    J = token-mean[min(r·A, clip(r, low, high)·A)],    low = min(1 − ε_low, e^{−τ}),  high = max(1 + ε_high, e^{τ})
The paper's: the rule; the authors' script and code: budget 0.04, ε_low = 0.3 and ε_high = 0.5, beyond which the region
never shrinks, and a mean over tokens. The code takes for τ the next smaller |log r| that occurs among the tokens; this
file solves for τ. τ is that of the current policy: before the first update on a batch all r are 1, so `prepare` cannot
know it. It is taken over what is in the loss at once and not optimised through. Parts of a batch would each have a τ of
their own, as in the authors' code; here `undivided` = "batch" makes trainers refuse that. So any budget above 0 breaks
laws 4 and 9. At the defaults the batch of the laws does not show it, because there τ lies inside the fixed bounds;
`exceptions` declares both for budgets and bounds with which it does. Differs from `dapo` in a region that follows the
batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Paper, Reduction, Scope
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("m2po")
@dataclass(frozen=True)
class M2PO(GRPO):
    """GRPO with bounds e^{∓τ} under a budget for the mean of log²r, never narrower than [1−ε_low, 1+ε_high]."""

    aggregation: str = "token-mean"
    eps_low: float = 0.3
    eps_high: float = 0.5
    budget: float = 0.04

    paper: ClassVar[Paper] = Paper("Prosperity before Collapse (M2PO)", "2510.01161", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"budget": 0.0})
    undivided = "batch"
    examples = (
        {"eps_low": 0.0, "eps_high": 0.0},
        {"eps_low": 0.2, "eps_high": 0.28},
        {"budget": 0.08},
        {"dual_clip": 3.0},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "budget", 0.0, 1e9)

    @property
    def scope(self) -> Scope:
        return "batch"

    @property
    def exceptions(self) -> Mapping[str, str]:
        # The laws' batch has a mean log²r of about 0.09: a larger budget needs no τ, and wider bounds hide it.
        hidden = min(self.eps_low, self.eps_high) >= 1.15 * math.sqrt(self.budget)
        if hidden or not 0.003 <= self.budget < 0.09:
            return super().exceptions
        return {
            **super().exceptions,
            "finite_differences": "τ follows the ratios of the moment and is not optimised through",
            "splitting_is_exact": "a part of the batch has a τ of its own: it does not know the ratios of the others",
        }

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        square = log_ratio.detach().square()  # the region is a rule, not something to optimise through
        harmful = batch.response_mask & (batch.token_advantages * log_ratio > 0)
        tau = cap(square, harmful, self.budget).sqrt()
        return Region((-tau).exp().clamp(max=1 - self.eps_low), tau.exp().clamp(min=1 + self.eps_high))


def cap(values: Tensor, chosen: Tensor, budget: float) -> Tensor:
    """The largest c with mean min(values, c) ≤ budget over the chosen tokens of a run, `[*R, 1, 1]`; ∞ if any will do.

    With v sorted upwards and N of them, Σ min(v, v_k) = Σ_{j<k} v_j + (N − k)·v_k passes N·budget first at some k;
    there c = (N·budget − Σ_{j<k} v_j) / (N − k).
    """
    count = chosen.sum((-2, -1)).unsqueeze(-1).double()
    ordered = torch.where(chosen, values, torch.inf).flatten(-2).sort(-1).values
    place = torch.arange(ordered.shape[-1], device=values.device)
    ordered = torch.where(place < count, ordered, 0.0).double()
    before, left = ordered.cumsum(-1) - ordered, (count - place).clamp(min=1)
    passed = (place < count) & (before + left * ordered > budget * count)
    solved = (budget * count - before).clamp(min=0) / left
    first = passed.to(torch.int8).argmax(-1, keepdim=True)
    found = torch.where(passed.any(-1, keepdim=True), solved.gather(-1, first), torch.inf)
    return found.unsqueeze(-1).to(values.dtype)
