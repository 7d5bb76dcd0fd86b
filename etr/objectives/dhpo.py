"""DHPO: the token's ratio and its response's ratio, each clipped in its own region, then mixed.

    J_t = w_t·S(r_t, A; 1−ε_low, 1+ε_high) + (1−w_t)·S(s_t, A; 1−ε_seq_low, 1+ε_seq_high)

S is PPO's min(r·A, clip(r)·A); s_t = sg[s]·π/sg[π] has the value of GSPO's s = exp(mean log r) and the gradient of its
own token. w_t = `weight` everywhere (`mixing` "average"), or sg[H_t / max H] of the batch ("entropy").
Paper: Min et al., "Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR", 2601.05607.
The paper's (abstract): both ratios in one clipped surrogate, each branch clipped before mixing, averaged and
entropy-guided mixing. RECONSTRUCTED, so OURS: the sum of two surrogates (not one surrogate of a mixed ratio), H taken
at the start of the update and divided by the batch's largest, the token branch for tokens of high entropy, GRPO's
z-scores and mean over responses, one dual clip for both branches (off, as in GRPO), and all defaults, of which none of
the paper's was found: ε_low = 0.2 and ε_high = 0.28 for tokens are DAPO's, 3e-4 and 4e-4 for responses GSPO's, weight ½
is the plain average.
Differs from GRPO: half of the update follows the response's ratio. Not the "DHPO" of hybrid control problems.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked, ratios, regions, surrogates
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction, Scope, State
from etr.objectives.grpo import GRPO
from etr.registry import register

TITLE = "Orchestrating Tokens and Sequences: Dynamic Hybrid Policy Optimization for RLVR"


@register("dhpo")
@dataclass(frozen=True)
class DHPO(GRPO):
    """J = w·S(r; token bounds) + (1−w)·S(s; sequence bounds)."""

    eps_high: float = 0.28
    eps_seq_low: float = 3e-4
    eps_seq_high: float = 4e-4
    mixing: str = "average"
    weight: float = 0.5

    paper: ClassVar[Paper] = Paper(TITLE, "2601.05607", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"mixing": "average", "weight": 1.0})
    examples = ({"mixing": "entropy"}, {"weight": 0.0, "eps_seq_high": 0.2})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "weight", "eps_seq_low", "eps_seq_high")
        checks.check_choice(self, "mixing", ("average", "entropy"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | (frozenset({"entropy"}) if self.mixing == "entropy" else frozenset())

    @property
    def columns(self) -> tuple[str, ...]:
        return ("dhpo_weight",) if self.mixing == "entropy" else ()

    @property
    def scope(self) -> Scope:
        return "batch" if self.columns else "row"

    @property
    def exceptions(self) -> Mapping[str, str]:
        broken = dict(super().exceptions)
        if self.mixing == "entropy":
            broken["finite_differences"] = "the sequence branch has its response's value and its own token's gradient"
        if self.mixing == "entropy" or self.weight < 1:
            broken["pessimistic"] = "part of the objective follows the response's ratio, not the token's"
        return broken

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if self.mixing == "average":
            return batch, state
        clean = batch.clean()
        assert clean.entropy is not None  # in `needs`
        entropy = clean.entropy.detach()  # weights are data of the update
        most = masked.largest(entropy, clean.response_mask)
        return batch.with_columns(dhpo_weight=entropy / torch.where(most > 0, most, 1.0)), state

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        advantages = batch.token_advantages
        token = surrogates.pessimistic_clip(log_ratio, advantages, region, self.dual_clip)
        # GSPO-token: the value is the response's ratio, the gradient the token's own.
        own = ratios.sequence(batch).detach() + (log_ratio - log_ratio.detach())
        narrow = regions.fixed(self.eps_seq_low, self.eps_seq_high, log_ratio)
        whole = surrogates.pessimistic_clip(own, advantages, narrow, self.dual_clip)
        weight = batch.columns["dhpo_weight"].to(log_ratio.dtype) if self.columns else self.weight
        return weight * token + (1 - weight) * whole
