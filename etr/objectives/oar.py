"""OAR: credit by how much a token decides the final answer.

    I_t = KL(P(answer | o) ‖ P(answer | o with token t masked)),   n_t = (I_t − min I)/(max I − min I) over the response
    w_t = max(n_t/θ, 0.1) if n_t < θ, else 1 + b·(n_t − θ)/(1 − θ)
    A_{i,t} = w_t·A_i

Paper: Li et al., "Outcome-Grounded Advantage Reshaping", 2601.07408; formula, θ = 0.25, b = 1 and the floor 0.1 are in
the authors' README. There θ is called a percentile, but used as a value of n, and so it is here. I_t is the batch's
`influence`; with one certain answer a, the KL is −ln P_masked(a), which is what the toys compute exactly (OAR-P; OAR-G
is an approximation of it by gradients). Ours: where all tokens of a response matter equally, n tells nothing and w = 1.
floor = 1 and boost = 0 is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("oar")
@dataclass(frozen=True)
class OAR(Shaping, GRPO):
    """GRPO with A·w: w from `floor` to 1 below the threshold of influence, from 1 to 1 + boost above it."""

    threshold: float = 0.25
    boost: float = 1.0
    floor: float = 0.1

    paper: ClassVar[Paper] = Paper("Outcome-Grounded Advantage Reshaping (OAR)", "2601.07408", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"boost": 0.0, "floor": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "threshold", 1e-6, 1 - 1e-6)
        check_range(self, "floor", 0.0, 1.0)
        check_range(self, "boost", 0.0, 1e6)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"influence"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.influence is not None  # in `needs`
        influence, mask = batch.influence, batch.response_mask
        low = torch.where(mask, influence, torch.inf).amin(-1, keepdim=True)
        high = torch.where(mask, influence, -torch.inf).amax(-1, keepdim=True)
        told = mask & (high > low)
        level = torch.where(told, influence - low, 0.0) / torch.where(high > low, high - low, 1.0)
        below = (level / self.threshold).clamp(min=self.floor)
        above = 1 + self.boost * (level - self.threshold) / (1 - self.threshold)
        weight = torch.where(level < self.threshold, below, above)
        return batch.token_advantages * torch.where(told, weight, 1.0)
