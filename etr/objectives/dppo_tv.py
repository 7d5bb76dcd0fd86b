"""DPPO-TV: drop a token when its probability has moved too far, not when its ratio has.

    J = agg[M·sg[min(r, C)]·A·log π],   r = π/μ                           μ: the anchor
    M = 0 where A > 0 and π > μ and D > δ_high, or A < 0 and π < μ and D > δ_low; else 1
    binary: D = |π − μ| of the sampled token;   topk: D = ½ Σ |π_k − μ_k| over the likeliest tokens and the rest

Paper: "Rethinking the Trust Region in LLM RL", 2602.04879. `anchor` "rollout" is the engine that
sampled (the paper's), "old" the policy at the start of the update (its *_recompute variants). Defaults: verl's example,
δ = 0.15; C = 20 is verl's code (the authors': 10; example scripts: 1e4, off); sum over tokens by a constant length
(`length`, or the padded one). OUR choice: z-scores; "topk" measures D to the distribution at the start of the update
with both anchors, because of the engine's a batch has the sampled tokens only.
Differs from PPO: a rare token may move by a large ratio, a likely one by a small one only. The binary M is the interval
|r − 1| ≤ δ/μ (`etr.divergences`), one-sided as PPO's clip, with CISPO's stopped weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import aggregation, divergences, ratios, regions
from etr.batch import Batch, Region
from etr.checks import check_choice, check_range
from etr.objective import Objective, Paper, Reduction, Scope, State
from etr.registry import register

OPEN = {"anchor": "old", "delta_low": 1e9, "delta_high": 1e9, "cap": 5.0}  # no mask, and CISPO's cap


@register("dppo_tv")
@dataclass(frozen=True)
class DPPOTV(Objective):
    """J = agg[M·sg[min(r, C)]·A·log π] with M by total variation."""

    aggregation: str = "seq-mean-token-sum-norm"
    length: int | None = None
    kind: str = "binary"
    anchor: str = "rollout"
    delta_low: float = 0.15
    delta_high: float = 0.15
    cap: float = 20.0

    divergence: ClassVar[str] = "tv"
    paper: ClassVar[Paper] = Paper("Rethinking the Trust Region in LLM RL (DPPO)", "2602.04879", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("cispo", OPEN, {"eps_low": 1.0, "eps_high": 4.0})
    examples = ({"anchor": "old"}, {"kind": "topk"}, {"kind": "topk", "anchor": "old"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", ("binary", "topk"))
        check_choice(self, "anchor", ("rollout", "old"))
        for name, least in (("delta_low", 0.0), ("delta_high", 0.0), ("cap", 1.0)):
            check_range(self, name, least, 1e9)

    @property
    def needs(self) -> frozenset[str]:
        asked = {"rollout_log_probs": self.anchor == "rollout", "top_log_probs": self.kind == "topk"}
        return frozenset(name for name, needed in asked.items() if needed)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("dppo_top",) if self.kind == "topk" else ("dppo_low", "dppo_high")

    @property
    def scope(self) -> Scope:
        return "token"  # the columns are the token's own, made once

    @property
    def exceptions(self) -> Mapping[str, str]:
        start = "r is the ratio to the rollout engine, which is not 1 at the start of an update"
        return {
            **({"on_policy": start} if self.anchor == "rollout" else {}),
            "pessimistic": "the objective A·log π is weighted by the ratio, not bounded by it",
            "finite_differences": "weight and mask are stop-gradients, so c is not the derivative of the value",
        }

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        if self.kind == "topk":
            assert clean.top_log_probs is not None  # in `needs`
            return batch.with_columns(dppo_top=clean.top_log_probs.detach()), state  # the old policy is data
        anchor = self.anchored(clean)
        low, _ = divergences.ball(anchor, self.delta_low, self.divergence, capped=False)
        _, high = divergences.ball(anchor, self.delta_high, self.divergence, capped=False)
        return batch.with_columns(dppo_low=low, dppo_high=high), state

    def anchored(self, batch: Batch) -> Tensor:
        """log μ of the sampled tokens."""
        if self.anchor == "old":
            return batch.old_log_probs
        assert batch.rollout_log_probs is not None  # in `needs`
        return batch.rollout_log_probs

    def ratio(self, batch: Batch) -> Tensor:
        return (batch.log_probs - self.anchored(batch)).clamp(-ratios.LOG_RATIO_LIMIT, ratios.LOG_RATIO_LIMIT)

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        if self.kind == "topk":
            return regions.unbounded(log_ratio)  # D is of the whole distribution: no interval of r says it
        return Region(*(batch.columns[name].to(log_ratio.dtype) for name in self.columns))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        ratio, advantages = log_ratio.detach().exp(), batch.token_advantages  # M is a rule, not optimised through
        # Not by `ratio`, bounded at e^20: a token that came from below 1e-9 would escape its mask.
        moved = (batch.log_probs - self.anchored(batch)).detach().double().exp()
        if self.kind == "binary":
            above, below = moved > batch.columns["dppo_high"], moved < batch.columns["dppo_low"]
        else:
            assert batch.top_log_probs is not None  # in `needs`
            distance = divergences.bucketed(batch.columns["dppo_top"], batch.top_log_probs.detach(), self.divergence)
            above, below = (distance > self.delta_high) & (moved > 1), (distance > self.delta_low) & (moved < 1)
        dropped = ((advantages > 0) & above) | ((advantages < 0) & below)
        return torch.where(dropped, 0.0, ratio.clamp(max=self.cap) * advantages * batch.log_probs)

    def denominator(self, mask: Tensor) -> Tensor:
        return aggregation.global_denominator(mask, self.aggregation, self.length)
