"""DAPO: GRPO with a higher upper bound ("clip-higher") and a mean over all tokens of the batch.

Paper: Yu et al., "DAPO", 2503.14476. ε_low = 0.2, ε_high = 0.28, no KL term.
This file is DAPO's loss. Its dynamic sampling (keep groups with 0 < correct < G) belongs to the sampler and its soft
overlong punishment to the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("dapo")
@dataclass(frozen=True)
class DAPO(GRPO):
    """J = token-mean[min(r·A, clip(r, 1−0.2, 1+0.28)·A)]."""

    aggregation: str = "token-mean"
    eps_high: float = 0.28

    paper: ClassVar[Paper] = Paper("DAPO: an open-source LLM reinforcement learning system", "2503.14476", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"eps_high": 0.2, "aggregation": "seq-mean-token-mean"})
