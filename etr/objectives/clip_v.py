"""Clip_V: wrong answers lose the tokens that would take most entropy away, measured against the token's own vocabulary.

    S_a = π(a)·(H + log π(a)),   D_t = Σ_a π(a)·S_a − S_t: to first order the entropy that lowering the token costs
    a token with A < 0 gets no gradient where D_t > μ·std D over all tokens of the batch, at most a share of all tokens,
    the largest D first; else GRPO

Paper: "On the Entropy Dynamics in Reinforcement Fine-Tuning of Large Language Models", 2602.03392 (Theorem 3.3 has D).
Defaults are the authors' example: μ = 8.5 (`threshold`), share 1e-4 (`most`). On-policy the mean of D over the
vocabulary is 0: rewards that say nothing leave entropy alone.
OUR choices: π at the start of the update; at least one token may go, or small batches would never lose any, but none
with `most` = 0; equal tokens, as the same answers of a bandit, share what is left of that number: of m such tokens k go
in that each keeps the share 1 − k/m; population std, nothing is left out where it is below 1e-12; the tokens left out
stay in the mean.
Differs from Clip_B: the baseline of the token's own state instead of the batch's mean, and the bound on their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import checks, masked
from etr.batch import Batch
from etr.objective import Category, Paper, Reduction
from etr.objectives.clip_b import NO_SPREAD, discriminator
from etr.objectives.clip_cov import at_least_one
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("clip_v")
@dataclass(frozen=True)
class ClipV(Shaping, GRPO):
    """GRPO without the tokens of wrong answers with the largest D_t > μ·std D."""

    threshold: float = 8.5
    most: float = 1e-4

    paper: ClassVar[Paper] = Paper("On the Entropy Dynamics in RFT of LLMs (Clip_V)", "2602.03392", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"threshold": 1e9})
    examples = ({"threshold": 0.5, "most": 0.1},)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "threshold")
        checks.check_ranges(self, 0.0, 1.0, "most")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"full_log_probs", "entropy"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.full_log_probs is not None and batch.entropy is not None  # in `needs`
        mask, full = batch.response_mask, batch.full_log_probs.double().clamp(min=-100.0)  # 0·∞ for tokens of chance 0
        expected = (full.exp() * discriminator(full, batch.entropy.unsqueeze(-1))).sum(-1)
        cost = expected - discriminator(batch.old_log_probs, batch.entropy)
        spread = masked.std(cost, mask)
        likely = mask & (cost > self.threshold * spread) & (batch.token_advantages < 0) & (spread >= NO_SPREAD)
        out = masked.top_shares(cost, likely, at_least_one(mask, self.most)) * (self.most > 0)
        return batch.token_advantages * (1 - out).to(batch.advantages.dtype)
