"""HAPO: one score per token from its entropy, which sets its clip range and how much of its advantage it gets.

    x_t = ln max(H_t, 1e-6);   x₀ = κ-quantile of x;   ĥ_t = (x_t − x₀)/max(x − x₀) above x₀, /|min(x − x₀)| below
    ĥ > 0:  ε_high' = ε_high·(1 + α·ĥ),  A' = A·(1 + β·ĥ) outside Z, A inside          (uncertain tokens)
    ĥ ≤ 0:  ε_low'  = ε_low·(1 − α·ĥ),   A' = A·(1 + β·ĥ) inside Z, A outside          (certain tokens)
    Z = (1 − ε_low'/2, 1 + ε_high'/2);   J = token-mean[S(r, A'; 1 − ε_low', 1 + ε_high')], dual clip
    A: mean and std of R over all tokens of the group, (R − μ)/(σ + 1e-6); the z-score of responses if any |A| ≥ 5

Paper: Liu et al., "From Uniform to Heterogeneous: Tailoring Policy Optimization to Every Token's Nature", 2509.16591.
Defaults are the authors' script: κ = 0.8 (`pivot`), α = β = 1 (`clip_gain`, `advantage_gain`), ε = 0.2, dual clip 10.
`literal_scores`: the released code divides the lower side by its negative minimum, so that ĥ = |ĥ| ≥ 0 and the rule for
certain tokens never acts; off by default. OUR choices: H at the start of the update, the quantile interpolated,
differences below 1e-6 counted as none. The adaptive temperature belongs to the sampler and is not here.
Differs from GRPO: all of the above. Not "HAPO" of history-aware length rewards (2505.11225).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked, regions, surrogates
from etr.batch import Batch, Region
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

LEAST_ENTROPY, SAME, LARGEST_ADVANTAGE = 1e-6, 1e-6, 5.0


@register("hapo")
@dataclass(frozen=True)
class HAPO(Shaping, GRPO):
    """J = token-mean[S(r, A'; 1 − ε_low', 1 + ε_high')], ranges and A' by the token's entropy score."""

    aggregation: str = "token-mean"
    dual_clip: float | None = 10.0
    pivot: float = 0.8
    clip_gain: float = 1.0
    advantage_gain: float = 1.0
    token_average: bool = True
    literal_scores: bool = False

    paper: ClassVar[Paper] = Paper("From Uniform to Heterogeneous (HAPO)", "2509.16591", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"clip_gain": 0.0, "advantage_gain": 0.0, "token_average": False}
    )
    examples = ({"literal_scores": True}, {"advantage_gain": 0.0}, {"clip_gain": 0.5, "advantage_gain": 0.5})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "pivot", "advantage_gain")  # a larger gain would turn signs
        checks.check_ranges(self, 0.0, 1e9, "clip_gain")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy", "rewards", "group_ids"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "hapo_score")

    @property
    def exceptions(self) -> Mapping[str, str]:
        broken = dict(super().exceptions)
        if self.advantage_gain > 0:
            broken["pessimistic"] = "redistributed advantages: certain tokens lose less than r·A where A < 0"
            if not self.literal_scores:
                broken["on_policy"] = "inside Z, r = 1 included, certain tokens get A·(1 + β·ĥ) < A"
        return broken

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        clean = batch.clean()
        assert clean.entropy is not None  # in `needs`
        score = self.scores(clean.entropy.detach(), clean.response_mask)  # data of the update
        return batch.with_columns(hapo_score=score), state

    def scores(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """ĥ in [−1, 1], `[*R, B, T]`."""
        log_entropy = entropy.clamp(min=LEAST_ENTROPY).log()
        gap = log_entropy - masked.quantile(log_entropy, mask, self.pivot)
        most, least = masked.largest(gap, mask).clamp(min=SAME), masked.least(gap, mask).clamp(max=-SAME)
        score = torch.where(gap > 0, gap / most, gap / -least)
        score = torch.where(mask & (gap.abs() > SAME), score, 0.0)
        return score.abs() if self.literal_scores else score

    def shape(self, batch: Batch) -> Tensor:
        if not self.token_average:
            return batch.advantages
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        rewards, length = batch.rewards.double(), batch.response_mask.sum(-1).double()
        groups = Groups(rewards, batch.group_ids)
        tokens = groups.sum(length).clamp(min=1)
        centred = rewards - groups.sum(length * rewards) / tokens
        std = (groups.sum(length * centred.square()) / tokens).sqrt()
        scores = torch.where(groups.homogeneous(rewards), 0.0, centred / (std + 1e-6))
        far = groups.sum(((scores.abs() >= LARGEST_ADVANTAGE) & (length > 0)).double()) > 0
        return torch.where(far, self.advantage(batch.rewards, batch.group_ids), scores).to(batch.advantages.dtype)

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        score = batch.columns["hapo_score"].to(log_ratio.dtype)
        low = self.eps_low * (1 - self.clip_gain * score.clamp(max=0.0))
        return regions.interval(low.clamp(max=1.0), self.eps_high * (1 + self.clip_gain * score.clamp(min=0.0)))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        score, ratio = batch.columns["hapo_score"].to(log_ratio.dtype), log_ratio.exp()
        inside = (ratio > (1 + region.low) / 2) & (ratio < (1 + region.high) / 2)
        active = torch.where(inside == (score > 0), 0.0, score)  # uncertain tokens outside Z, certain ones inside
        advantages = batch.token_advantages * (1 + self.advantage_gain * active)
        return surrogates.pessimistic_clip(log_ratio, advantages, region, self.dual_clip)
