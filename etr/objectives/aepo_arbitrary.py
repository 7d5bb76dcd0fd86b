"""AEPO (arbitrary entropy): right answers of a tempered policy are reinforced, hot while entropy is low, else cold.

    ∇J = ∇J_GRPO + α·E_{y∼π^T}[R(y)·∇log π(y)],   π^T(v|s) ∝ π(v|s)^{1/T},   T = T_high if H̄ ≤ H₀ else T_low

Paper: Wang et al., "Arbitrary Entropy Policy Optimization", 2510.08141. Its code draws further answers at temperature T
and puts right ones of them with advantage 1 into the batch. RECONSTRUCTED: our realisation draws none and weighs the
answers at hand, E_{y∼π^T}[f] = E_{y∼π}[w·f] with w = Π_t π^T(y_t)/π(y_t), the same in expectation; so in all
A_{i,t} = A_i + α·w_i·R_i, which then passes through the clip as the paper's samples do. `level="token"` takes each
token's own ratio for w, biased, but of small variance for long answers. w is at most `max_weight` (ours, 10).
Defaults T_high = 1.2, T_low = 0.8, H₀ = 0.5: the authors' code; α = 0.1 is ours, none was found.
Not ARES's nor agentic AEPO (2510.14545). Differs from GRPO by the second term of A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.distributions import tempering
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("aepo_arbitrary")
@dataclass(frozen=True)
class AEPOArbitrary(Shaping, GRPO):
    """GRPO with A_{i,t} = A_i + alpha·w·R_i, w = π^T/π of the answer (level "sequence") or of the token ("token")."""

    alpha: float = 0.1
    target: float = 0.5
    hot: float = 1.2
    cold: float = 0.8
    level: str = "sequence"
    max_weight: float = 10.0

    paper: ClassVar[Paper] = Paper("Arbitrary Entropy Policy Optimization", "2510.08141", "reconstructed")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"alpha": 0.0})
    examples = ({"level": "token"}, {"target": 3.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "level", ("sequence", "token"))
        check_range(self, "alpha", 0.0, float("inf"))
        for name in ("hot", "cold", "max_weight"):
            check_range(self, name, 0.0, float("inf"), open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy", "full_log_probs", "rewards", "tokens"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None  # in `needs`
        log_weight = tempering(batch, self.target, self.hot, self.cold)
        if self.level == "sequence":
            log_weight = log_weight.sum(-1, keepdim=True).expand_as(log_weight)
        weight = log_weight.clamp(max=math.log(self.max_weight)).exp()
        return batch.token_advantages + self.alpha * weight * batch.rewards.unsqueeze(-1)
