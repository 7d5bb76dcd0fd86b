"""TOPR: right answers as in supervised learning, wrong ones with a truncated importance weight.

    J = agg[w_pos·A·log π]                                where A > 0: no ratio, however old the sample
    J = agg[w_neg·sg[clip(r, 0, 1)]·A·log π]              where A < 0

Paper: Le Roux et al., "Tapered Off-Policy REINFORCE", 2503.14286. The weight is that of the whole answer, Π_t r_t
(`level` "sequence", the default), in ROLL's code each token's own ("token"). Only the second was read in code; the
default level was not. Defaults: the paper's interval [0, 1], that is ε_low = 1 and ε_high = 0, and weights 1.
OUR choice: "right" is A > 0 and not R > 0, which is the same for 0/1 rewards with a baseline and does not depend on
their coding; advantages are leave-one-out.
Differs from `reinforce`: the push away from a wrong answer fades as it becomes rarer, where log π has no lower bound;
from CISPO: the weight is at most 1 and is for wrong answers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios, regions, surrogates
from etr.batch import Batch, Region
from etr.checks import check_choice, check_range
from etr.objective import Paper, Reduction, Scope
from etr.objectives.reinforce import REINFORCE
from etr.registry import register

NEUTRAL = {"eps_low": 0.0, "eps_high": 0.0, "weight_pos": 1.0, "weight_neg": 1.0}


@register("topr")
@dataclass(frozen=True)
class TOPR(REINFORCE):
    """J = agg[w·sg[clip(r, low, high)]·A·log π], [1, 1] for A > 0 and [1 − eps_low, 1 + eps_high] for A < 0."""

    eps_low: float = 1.0
    eps_high: float = 0.0
    weight_pos: float = 1.0
    weight_neg: float = 1.0
    level: str = "sequence"

    paper: ClassVar[Paper] = Paper("Tapered Off-Policy REINFORCE", "2503.14286", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", NEUTRAL)
    examples = ({"level": "token"}, {"weight_neg": 0.5})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "level", ("sequence", "token"))
        for name in ("weight_pos", "weight_neg"):
            check_range(self, name, 0.0, 1e9)

    @property
    def scope(self) -> Scope:
        return "row" if self.level == "sequence" else "token"

    @property
    def exceptions(self) -> Mapping[str, str]:
        start = {} if self.weight_pos == self.weight_neg == 1 else {"on_policy": "right and wrong answers are weighted"}
        stopped = {"finite_differences": "the weight is a stop-gradient, so c is not the derivative of the value"}
        return {**super().exceptions, **start, **(stopped if self.eps_low > 0 or self.eps_high > 0 else {})}

    def ratio(self, batch: Batch) -> Tensor:
        if self.level == "token":
            return ratios.token(batch)
        whole = (batch.log_probs - batch.old_log_probs).sum(-1, keepdim=True)
        bounded = whole.clamp(-ratios.LOG_RATIO_LIMIT, ratios.LOG_RATIO_LIMIT)
        return torch.where(batch.response_mask, bounded, 0.0)

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        wrong = batch.token_advantages < 0
        low, high = (regions.number(x, log_ratio) for x in (1 - self.eps_low, 1 + self.eps_high))
        return Region(torch.where(wrong, low, 1.0), torch.where(wrong, high, 1.0))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantages = batch.token_advantages
        pos, neg = (regions.number(x, log_ratio) for x in (self.weight_pos, self.weight_neg))
        weight = torch.where(advantages < 0, neg, pos)
        return surrogates.weighted_policy_gradient(log_ratio, batch.log_probs, weight * advantages, region)
