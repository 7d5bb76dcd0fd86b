"""ETR: GRPO whose clip range follows the signal: wider for large advantages and for groups of medium difficulty.

Paper: Zhang et al., "ETR: Outcome-Guided Elastic Trust Regions", 2601.03723.
The paper's: two levels; the micro level scales the clipping bounds by advantage magnitude, the macro level gives groups
with a larger variance of the pass rate a larger budget; the base is GRPO.
RECONSTRUCTED by this project, because the paper's equations could not be read: every formula and number below.

    micro_i = 1 + λ_mic·tanh(|A_i| − 1)      neutral at |A| = 1, the root mean square of a group's z-scores
    macro_i = 1 + λ_mac·(4v_i − ½)           v = p(1−p), the group's variance; 4v is 1 at p = ½ and 0 at p ∈ {0, 1}
    ε_i     = clamp(ε·micro_i·macro_i, ε_min, ε_max)        for each bound
    J       = agg[min(r·A, clip(r, 1−ε_low,i, 1+ε_high,i)·A)]

At p = ½ every ε_i is 0.25; at p = 1/16 it is 0.26 for right and 0.12 for wrong responses: for rare successes the two
levels pull in opposite directions. With `normalize_budget` the scales are divided by their mean over the batch, so that
the mean ε stays at its base: what remains is allocation, not wider clipping. With advantages other than z-scores the
pivot |A| = 1 has no such meaning.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register

PAPER = Paper("ETR: Outcome-Guided Elastic Trust Regions", "2601.03723", "reconstructed")


@register("etr")
@dataclass(frozen=True)
class ETR(GRPO):
    """GRPO with ε_i = clamp(ε·(1 + micro·tanh(|A_i| − 1))·(1 + macro·(4v_i − ½)), eps_min, eps_max)."""

    micro: float = 0.5
    macro: float = 0.5
    eps_min: float = 0.05
    eps_max: float = 0.5
    normalize_budget: bool = False

    paper: ClassVar[Paper] = PAPER
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"micro": 0.0, "macro": 0.0})
    examples = ({"normalize_budget": True}, {"eps_high": 0.28, "macro": 0.0})

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("etr_budget",) if self.normalize_budget else ()

    @property
    def reads_policy(self) -> bool:
        return False  # the budget is made of advantages and group statistics

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if not self.normalize_budget:
            return batch, state
        budget = batch_mean(self.scale(batch.clean()), batch)
        return dataclasses.replace(batch, columns={**batch.columns, "etr_budget": budget}), state

    def scale(self, batch: Batch) -> Tensor:
        """micro·macro, `[*R, B, 1]` (or T for token-level advantages), before any budget."""
        assert batch.group is not None  # in `needs`
        signal = batch.token_advantages.abs().detach()  # the region is a rule, not something to optimise through
        micro = 1 + self.micro * torch.tanh(signal - 1)
        macro = 1 + self.macro * (4 * batch.group.var.unsqueeze(-1).to(signal.dtype) - 0.5)
        return micro * macro

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        scale = self.scale(batch)
        if self.normalize_budget:
            scale = scale / batch.columns["etr_budget"].unsqueeze(-1).to(scale.dtype)
        return regions.elastic(scale, self.eps_low, self.eps_high, self.eps_min, self.eps_max)


def batch_mean(values: Tensor, batch: Batch) -> Tensor:
    """Mean of `values` `[*R, B, 1 or T]` over the responses that have a gradient (A ≠ 0), as a column `[*R, B]`.

    Responses of groups without signal do not move the policy whatever their ε, so they have no share in the budget.
    Each response counts once, however long. In double precision, so that the mean of equal values is that value.
    """
    clean = batch.clean()
    weight = (clean.response_mask & (clean.token_advantages != 0)).double()
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1)
    total = weight.sum((-2, -1))
    mean = (values * weight).sum((-2, -1)) / total
    # No response has a gradient: any value will do, 1 is neutral and finite.
    mean = torch.where(total > 0, mean, 1.0).detach()  # a statistic of the batch, fixed for the update
    return mean.unsqueeze(-1).expand(batch.response_mask.shape[:-1])
