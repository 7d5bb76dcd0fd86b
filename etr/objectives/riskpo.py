"""RiskPO: train the lower part of the reward distribution of whole bundles of prompts, not its mean.

    S_j = Σ_b R_{b,j}    score of paper j: the j-th response to each prompt b of a bundle
    a_R = [(S − q_d)⁺ − (S − q_u)⁺]/(u − d)  (+ (q_d − q_u)/(u − d) with natural_baseline),   a_C = −(q_d − S)⁺/d
    a = (ω·a_C + a_R)/(ω + 1), divided by the std of the bundle's scores
    q ← q + η·(level − share of papers with S < q)   after each batch    (mode "track")

Paper: "RiskPO: Risk-based Policy Optimization via Verifiable Reward", 2510.00911 (Mixed Value-at-Risk); formulas and
defaults (d, u, 5 prompts, η, ω, "track", "sum-mean") as in the authors' code and DAPO-math script. mode: q tracked, the
bundle's own quantiles ("batch"), or the mean of both ("mix"). credit: how responses share a paper's a: all of it each
("uniform"); a/std of the prompt's rewards ("std", 1 where that is below 1e-3); a·(R_b − mean_b)/Σ_b'(R_b' − mean_b'),
or equal shares where that sum is 0 ("sum-mean"). upper > 0 puts upper·(S − q_u)⁺/(1 − u) for ω·a_C: the authors'
risk-seeking ablation. Ours: the first batch has its bundles' own quantiles, and q starts as that of all its papers (the
code's at 0); bundles follow the prompts' ids, with fewer prompts there is one (`etr.bundles`); where all papers of a
bundle score the same nothing is divided (the code divides by 1e-6). Groups must be of equal size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.bundles import CREDITS, Papers
from etr.checks import check_choice, check_range
from etr.errors import FieldError
from etr.objective import Paper, State
from etr.objectives.grpo import GRPO
from etr.registry import register

MODES = ("track", "batch", "mix")


@register("riskpo")
@dataclass(frozen=True)
class RiskPO(GRPO):
    """GRPO with the mixed value-at-risk of bundles: tail below the quantile `low`, range from `low` to `high`."""

    mode: str = "track"
    credit: str = "sum-mean"
    low: float = 0.2
    high: float = 0.8
    bundle: int = 5
    rate: float = 0.1
    tail: float = 1.5
    upper: float = 0.0
    scale: bool = True
    natural_baseline: bool = False

    paper: ClassVar[Paper] = Paper("RiskPO: Risk-based Policy Optimization", "2510.00911", "verified")
    category = "advantage"
    reduces_to = None
    examples = (
        {"mode": "batch", "credit": "uniform", "natural_baseline": True},
        {"mode": "mix", "credit": "std", "bundle": 2, "scale": False},
        {"mode": "batch", "upper": 1.5, "bundle": 1},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "mode", MODES)
        check_choice(self, "credit", CREDITS)
        for name, least, most in (("bundle", 1, 1e9), ("rate", 0, 1), ("tail", 0, 1e6), ("upper", 0, 1e6)):
            check_range(self, name, least, most)
        if not 0 < self.low < self.high < 1:
            raise FieldError(f"RiskPO.low is {self.low:g} and high {self.high:g}; give 0 < low < high < 1")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("riskpo_score",)

    @property
    def exceptions(self) -> Mapping[str, str]:
        broken = dict(super().exceptions)
        if self.bundle > 1:
            broken["response_order_is_irrelevant"] = "the places of responses in the batch say which make up a paper"
        if (self.mode, self.credit, self.natural_baseline) == ("track", "sum-mean", False):
            late = (
                "tracked quantiles lag: also papers below the mean get a > 0, whose share is negative for right answers"
            )
            broken["learns_a_bandit"] = late
        return broken

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        zero = torch.zeros(run_shape, dtype=torch.float64, device=device)
        return {"low": zero, "high": zero.clone(), "seen": zero.clone()}  # seen: 0 before the first batch, then 1

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        papers, seen = Papers(batch.rewards, batch.group_ids, self.bundle), state["seen"].unsqueeze(-1) > 0
        used, after = [], {"seen": torch.ones_like(state["seen"])}
        for name, level in (("low", self.low), ("high", self.high)):
            tracked, own = state[name].unsqueeze(-1), papers.quantile(level)
            share = {"track": 1.0, "mix": 0.5, "batch": 0.0}[self.mode]
            used.append(torch.where(seen, share * tracked + (1 - share) * own, own))
            moved = tracked + self.rate * (level - papers.mean_share(papers.scores < tracked))
            after[name] = torch.where(seen, moved, papers.quantile_of_all(level)).squeeze(-1)
        shares = papers.credit(self.risk(papers, *used), self.credit).to(batch.rewards.dtype)
        batch = dataclasses.replace(batch, advantages=shares)
        return batch.with_columns(riskpo_score=papers.scores), after

    def risk(self, papers: Papers, low: Tensor, high: Tensor) -> Tensor:
        """a of each response's paper."""
        over = (papers.scores - high).clamp(min=0)
        middle = (papers.scores - low).clamp(min=0) - over + (low - high if self.natural_baseline else 0)
        tail, weight = -(low - papers.scores).clamp(min=0) / self.low, self.tail
        if self.upper > 0:
            tail, weight = over / (1 - self.high), self.upper
        value = (weight * tail + middle / (self.high - self.low)) / (weight + 1)
        spread = papers.std()
        return value / torch.where(spread > 0, spread, 1.0) if self.scale else value
