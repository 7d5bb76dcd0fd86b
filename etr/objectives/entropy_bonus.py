"""Entropy bonus: GRPO that is also paid for the entropy of its own distribution.

    L = L_PG − c·agg_t(H_t),   H_t = −Σ_v π(v|s_t)·log π(v|s_t),   ∂H_t/∂z = −π·(log π + H_t) for logits z

Paper: Mnih et al., "Asynchronous methods for deep reinforcement learning", 1602.01783, with the bonus of Williams and
Peng (1991); published LLM trainers have the same term, aggregated as the objective is. The gradient flows through the
whole distribution, not through the sampled −log π. Default c = 0.001: the trainers' usual one; 0.002 (Lp-Reg's
baseline) and 0.005 (SIREN's) were reported to collapse or to explode. A negative c punishes entropy.
Differs from GRPO by the bonus alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr.batch import Batch
from etr.controllers import added
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("entropy_bonus")
@dataclass(frozen=True)
class EntropyBonus(GRPO):
    """GRPO − agg[coefficient·H], in nats per token."""

    coefficient: float = 0.001

    paper: ClassVar[Paper] = Paper("Asynchronous Methods for Deep Reinforcement Learning", "1602.01783", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"coefficient": 0.0})
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({"coefficient": 0.01, "beta": 0.1},)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.entropy is not None  # in `needs`
        return added(super().regularizer(batch), -self.coefficient * batch.entropy)
