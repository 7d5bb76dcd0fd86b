"""GRPO-Guard for language models: ratios centred before they are clipped, so that both bounds bite alike.

Paper: "GRPO-Guard", 2510.22319, for flow and diffusion models: of tokens drawn from π_old, log r has a negative mean,
E[log r] = −KL(π_old ‖ π), so that the upper bound is met too seldom. It adds that bias back (and scales each denoising
step): r = exp((log r + b)·a).
RECONSTRUCTED for language models by this project, which has no denoising steps to scale:
    r_t = exp(log π/π_old + strength·b_t),    J = agg[min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)]
    kind "response" (the default): b = −mean_t log π/π_old of the response, where only the sampled tokens are known;
    what is left are the differences between the tokens of a response, and nothing bounds its drift as a whole
    kind "state": b_t = KL(π_old ‖ π) in the token's state over the whole vocabulary, exact, so that E_old[log r] = 0;
    it needs `full_log_probs`, which toys have and an LLM's trainer does not
A mean over the batch, as first comes to mind, would depend on the micro-batches. ε is GRPO's, not the diffusion's 2e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, distributions, masked, ratios
from etr.batch import Batch
from etr.objective import Paper, Reduction, Scope, State
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("grpo_guard")
@dataclass(frozen=True)
class GRPOGuard(GRPO):
    """GRPO with log r + strength·b in the place of log r, b the ratio's own negative mean."""

    kind: str = "response"
    strength: float = 1.0

    paper: ClassVar[Paper] = Paper("GRPO-Guard", "2510.22319", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"strength": 0.0})
    examples = ({"kind": "state"}, {"beta": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice(self, "kind", ("state", "response"))
        checks.check_ranges(self, 0.0, 1.0, "strength")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"full_log_probs"} if self.kind == "state" else set())

    @property
    def columns(self) -> tuple[str, ...]:
        return ("grpo_guard_old",) if self.kind == "state" else ()

    @property
    def scope(self) -> Scope:
        return "batch" if self.kind == "state" else "row"

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.kind == "state":
            return super().exceptions
        return {**super().exceptions, "finite_differences": "the centre is taken as it is, not optimised through"}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if self.kind == "response":
            return batch, state
        return batch.with_columns(grpo_guard_old=distributions.table(batch)), state

    def ratio(self, batch: Batch) -> Tensor:
        log_ratio = ratios.token(batch)
        # A centre that could be optimised would let the policy raise r by moving away from the old one.
        bias = self._bias(batch, log_ratio).detach()
        limit = ratios.LOG_RATIO_LIMIT
        return torch.where(batch.response_mask, log_ratio + self.strength * bias, 0.0).clamp(-limit, limit)

    def _bias(self, batch: Batch, log_ratio: Tensor) -> Tensor:
        if self.kind == "response":
            return -masked.mean(log_ratio, batch.response_mask, dim=-1)
        new, old = distributions.new_and_old(batch, "grpo_guard_old")
        return (old.exp() * (old - new)).sum(-1)
