"""Entropy-based advantage: a bonus on uncertain tokens, too small to turn a sign.

    ψ_t = min(α·H_t, |A_t|/κ),   A'_t = A_t + ψ_t               α > 0, κ > 1, H_t of the old policy, no gradient

Paper: Cheng et al., "Reasoning with Exploration: An Entropy Perspective", 2506.14758; read in notes of others and in
the baseline of another paper's code, so third-party. Because ψ ≤ |A|/κ a negative advantage stays negative, a positive
one at most grows by the share 1/κ, and where A = 0 there is no bonus. No gradient goes through H: this is no entropy
bonus, it only changes how far the same tokens are pushed. Default: α = 0.4 from the code read, where κ is 1, so that a
wrong token may reach A' = 0; κ = 2 is recalled as the paper's and not confirmed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.errors import FieldError
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("entropy_advantage")
@dataclass(frozen=True)
class EntropyAdvantage(Shaping, GRPO):
    """GRPO's loss with A' = A + min(alpha·H, |A|/kappa)."""

    alpha: float = 0.4
    kappa: float = 2.0

    paper: ClassVar[Paper] = Paper("Reasoning with Exploration: An Entropy Perspective", "2506.14758", "third-party")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"alpha": 0.0})
    examples = ({"alpha": 0.1},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.kappa < 1:
            raise FieldError(
                f"EntropyAdvantage.alpha is {self.alpha:g} and kappa {self.kappa:g}; give alpha >= 0 and kappa >= 1"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        advantages = batch.token_advantages
        return advantages + torch.minimum(self.alpha * batch.entropy, advantages.abs() / self.kappa)
