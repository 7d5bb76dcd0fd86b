"""GRPO: PPO's clip with group-normalised advantages, each response averaged over its own tokens.

Paper: Shao et al., "DeepSeekMath", 2402.03300; the KL penalty is the k3 estimator.
A_i = (R_i − mean)/std of the group; J = (1/G) Σ_i (1/T_i) Σ_t min(r·A_i, clip(r, 1−ε, 1+ε)·A_i) − β·KL(π ‖ π_ref).
β = 0 is today's usual choice (TRL's default), and this file's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr.batch import Batch
from etr.objective import Paper, Reduction
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref


@register("grpo")
@dataclass(frozen=True)
class GRPO(PPO):
    """J = agg[min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)] − β·KL(π ‖ π_ref), β per token in nats."""

    aggregation: str = "seq-mean-token-mean"
    beta: float = 0.0

    paper: ClassVar[Paper] = Paper("DeepSeekMath (GRPO)", "2402.03300", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("ppo", {"aggregation": "token-mean", "beta": 0.0})
    examples = (*PPO.examples, {"beta": 0.1})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_log_probs"}) if self.beta > 0 else frozenset()

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.beta == 0:
            return None
        assert batch.ref_log_probs is not None  # in `needs`
        return self.beta * kl_policy_to_ref(batch.log_probs, batch.ref_log_probs, "k3")
