"""GRPO-Guard for language models: ratios centred before they are clipped, so that both bounds bite alike.

Paper: "GRPO-Guard", 2510.22319, for flow and diffusion models: of tokens drawn from π_old, log r has a negative mean,
E[log r] = −KL(π_old ‖ π), so that the upper bound is met too seldom. It adds that bias back (and scales each denoising
step): r = exp((log r + b)·a).
RECONSTRUCTED for language models by this project, which has no denoising steps to scale:
    r_t = exp(log π/π_old + strength·b_t),    J = agg[min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)]
    kind "state": b_t = KL(π_old ‖ π) in the token's state over the whole vocabulary, exact, so that E_old[log r] = 0
    kind "response": b = −mean_t log π/π_old of the response, where only the sampled tokens are known; what is left
    are the differences between the tokens of a response, and nothing bounds its drift as a whole
A mean over the batch, as first comes to mind, would depend on the micro-batches. ε is GRPO's, not the diffusion's 2e-6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked, ratios
from etr.batch import Batch
from etr.errors import FieldError, unknown
from etr.objective import Paper, Reduction, Scope, State
from etr.objectives.grpo import GRPO
from etr.registry import register

KINDS = ("state", "response")


@register("grpo_guard")
@dataclass(frozen=True)
class GRPOGuard(GRPO):
    """GRPO with log r + strength·b in the place of log r, b the ratio's own negative mean."""

    kind: str = "state"
    strength: float = 1.0

    paper: ClassVar[Paper] = Paper("GRPO-Guard", "2510.22319", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"strength": 0.0})
    examples = ({"kind": "response"}, {"beta": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise FieldError(unknown("GRPOGuard.kind", str(self.kind), KINDS))
        if not 0 <= self.strength <= 1:
            raise FieldError(f"GRPOGuard.strength is {self.strength:g}; give a number from 0 to 1")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"full_log_probs"} if self.kind == "state" else set())

    @property
    def columns(self) -> tuple[str, ...]:
        return ("old_full_log_probs",) if self.kind == "state" else ()

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
        old = batch.clean().full_log_probs
        assert old is not None  # in `needs`
        return batch.with_columns(old_full_log_probs=old.detach()), state  # of the old policy: data

    def ratio(self, batch: Batch) -> Tensor:
        log_ratio = ratios.token(batch)
        # A centre that could be optimised would let the policy raise r by moving away from the old one.
        bias = self._bias(batch, log_ratio).detach()
        limit = ratios.LOG_RATIO_LIMIT
        return torch.where(batch.response_mask, log_ratio + self.strength * bias, 0.0).clamp(-limit, limit)

    def _bias(self, batch: Batch, log_ratio: Tensor) -> Tensor:
        if self.kind == "response":
            return -masked.mean(log_ratio, batch.response_mask, dim=-1)
        assert batch.full_log_probs is not None  # in `needs`
        old = batch.columns["old_full_log_probs"].to(log_ratio.dtype)
        return (old.exp() * (old - batch.full_log_probs)).sum(-1)
