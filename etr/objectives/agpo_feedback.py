"""AGPO (dual feedback): a sequence clip whose radius shrinks with reward spread and drift and grows with entropy.

Paper: "AGPO: Adaptive Group Policy Optimization with Dual Statistical Feedback", 2605.20722, by its released trainer:
    ε_i = clamp( ε·(1 + κ·max(H, H_floor)) / (1 + α·σ + γ·KL_step + ζ·|skew|), ε_min, ε_max )
    J   = mean_i min(s_i·A_i, clip(s_i, 1−ε_i, 1+ε_i)·A_i)
with σ and skew of the group's rewards and H the policy's entropy, here the group's mean per token. Of all methods in
this library the nearest relative of ETR's group level, with the opposite sign: more reward variance, less room.
Defaults are those of the trainer (ε, ε_min, ε_max, α, γ; κ = 0.1 and H_floor = 1e-8 from its configuration); ζ = 0:
its number was not found, and the trainer measures no skew by default. The formula of ε and its defaults are the
trainer's, what goes into it is not, so the evidence is third-party. OURS: KL_step is the response's own
mean_t(r − 1 − log r) under the current policy instead of a running mean over groups; s_i is GSPO's geometric mean
instead of the plain product (the same for one token); H is the group's mean instead of a probe's; the mean over
responses and z-scores are GSPO's here. β = 0: in the released code the reference term has no gradient.
Not here: the second feedback, a sampling temperature set by a probe group, belongs to the sampler.
Not `agpo_adaptive` (2503.15952), which shares the acronym only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked, ratios, regions
from etr.batch import Batch, Region
from etr.groups import Groups
from etr.objective import Paper, Reduction, Scope, State
from etr.objectives.gspo import GSPO
from etr.registry import register


@register("agpo_feedback")
@dataclass(frozen=True)
class AGPOFeedback(GSPO):
    """GSPO with ε·(1 + entropy_gain·H)/(1 + spread·σ + drift·KL_step + skew·|skew|) in [eps_min, eps_max]."""

    eps_low: float = 0.2
    eps_high: float = 0.2
    eps_min: float = 0.05
    eps_max: float = 0.4
    entropy_gain: float = 0.1
    entropy_floor: float = 1e-8
    spread: float = 1.0
    drift: float = 0.5
    skew: float = 0.0

    paper: ClassVar[Paper] = Paper("AGPO with Dual Statistical Feedback", "2605.20722", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "gspo", {"entropy_gain": 0.0, "spread": 0.0, "drift": 0.0, "skew": 0.0}
    )
    examples = ({"skew": 0.3}, {"drift": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "entropy_gain", "entropy_floor", "spread", "drift", "skew")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("agpo_scale", "agpo_spread")

    @property
    def scope(self) -> Scope:
        return "batch"

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.drift == 0:
            return super().exceptions
        reason = "the radius follows the drift of the moment and is not optimised through"
        return {**super().exceptions, "finite_differences": reason}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.rewards is not None and clean.group_ids is not None and clean.entropy is not None  # in `needs`
        groups = Groups(clean.rewards, clean.group_ids)
        centred = clean.rewards - groups.mean(clean.rewards)
        std = groups.mean(centred.square()).sqrt()
        equal = groups.homogeneous(clean.rewards) | (std == 0)  # no spread: no skew either
        skew = groups.mean((torch.where(equal, 0.0, centred) / torch.where(equal, 1.0, std)) ** 3)
        mask = clean.response_mask
        tokens = groups.sum(mask.sum(-1).to(clean.rewards.dtype)).clamp(min=1)
        entropy = groups.sum(torch.where(mask, clean.entropy, 0.0).sum(-1).to(clean.rewards.dtype)) / tokens
        scale = 1 + self.entropy_gain * entropy.clamp(min=self.entropy_floor)
        spread = 1 + self.spread * torch.where(equal, 0.0, std) + self.skew * skew.abs()
        return batch.with_columns(agpo_scale=scale, agpo_spread=spread), state

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        scale, spread = (batch.columns[name].unsqueeze(-1).to(log_ratio.dtype) for name in self.columns)
        token = ratios.token(batch).detach()  # a measurement of the drift, not a way to change it
        step = masked.mean(token.exp() - 1 - token, batch.response_mask, dim=-1)
        scale = scale / (spread + self.drift * step)
        return regions.elastic(scale, self.eps_low, self.eps_high, self.eps_min, self.eps_max)
