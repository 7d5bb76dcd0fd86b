"""Clip_B: wrong answers lose the tokens that would take most entropy away, measured against the batch.

    S_t = π(y_t)·(H_t + log π(y_t)): to first order a step that raises the token's logit by ε changes entropy by −ε·S_t
    a token with A < 0 gets no gradient where S_t − mean S < −μ·std S, over all tokens of the batch; else GRPO

Paper: "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models", 2602.03392 (Theorem 3.2 has S).
Default μ = 2.5 (`threshold`) is the authors' example. Lowering a token that is surprising (S < 0) lowers entropy, so
those are the ones to leave out. Population std; where it is below 1e-12 nothing is left out.
OUR choice: π and H at the start of the update; the tokens left out stay in the mean.
Differs from GRPO: the tokens left out; from Clip_V: no need of the whole distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked
from etr.batch import Batch
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

NO_SPREAD = 1e-12


@register("clip_b")
@dataclass(frozen=True)
class ClipB(Shaping, GRPO):
    """GRPO without the tokens of wrong answers with S_t − mean S < −μ·std S."""

    threshold: float = 2.5

    paper: ClassVar[Paper] = Paper("On the Entropy Dynamics in RFT of LLMs (Clip_B)", "2602.03392", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"threshold": 1e9})
    examples = ({"threshold": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "threshold")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        mask, score = batch.response_mask, discriminator(batch.old_log_probs, batch.entropy)
        spread = masked.std(score, mask)
        low = score - masked.mean(score, mask) < -self.threshold * spread
        out = low & (batch.token_advantages < 0) & (spread >= NO_SPREAD)
        return torch.where(out, 0.0, batch.token_advantages)


def discriminator(log_probs: Tensor, entropy: Tensor) -> Tensor:
    """S = π·(H + log π), in double precision."""
    log_probs = log_probs.double()
    return log_probs.exp() * (entropy.double() + log_probs)
