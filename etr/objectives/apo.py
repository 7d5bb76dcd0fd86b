"""APO (View-R1): long wrong answers count more, and the KL penalty follows the difficulty of the prompt.

    STCR   i wrong, another right, x_i = T_i − mean length of the right > 0:  A_i ← A_i·(2 − b^{−x_i})
    DADS   penalty β·w_i·k3(π ‖ π_ref), d = 1 − acc(q):  w = 1 − e^{−e·(1−d)} where A_i > 0 and 0 < d < 1, else w = 1

Paper: "View-R1" (Asymmetric Policy Optimization), 2506.21655. STCR is suboptimal-trajectory complexity regularisation,
DADS difficulty-adaptive divergence shaping: right answers to hard prompts (d near 1) are held to the reference less.
Default: b = 1.00001 (`stretch` = b − 1), β = 1e-3 and the exponent are the authors' script's, its e read as Euler's
number (`sharpness`). Ours: right is a reward above 1/2. Another `w = e^{−e·d}` stands there commented out.
Not APO of preference optimisation (anchored) and not the others of that name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.errors import FieldError
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("apo")
@dataclass(frozen=True)
class APO(Shaping, GRPO):
    """GRPO with longer wrong answers weighted up to twice, and a KL penalty with a weight for each response."""

    beta: float = 1e-3
    stretch: float = 1e-5
    dads: bool = True
    sharpness: float = math.e

    paper: ClassVar[Paper] = Paper("View-R1 (Asymmetric Policy Optimization)", "2506.21655", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"stretch": 0.0, "dads": False})
    examples = ({"beta": 0.0}, {"beta": 0.1, "stretch": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stretch < 0 or not self.sharpness > 0:
            raise FieldError(
                f"APO.stretch is {self.stretch:g} and sharpness {self.sharpness:g}; give stretch >= 0 and sharpness > 0"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "kl_weight")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        accuracy = Groups(batch.rewards, batch.group_ids).mean((batch.rewards > 0.5).to(batch.rewards.dtype))
        weight = -torch.expm1(-self.sharpness * accuracy)  # 1 − d is the accuracy
        # On the advantages before STCR, which keeps their sign; those of a response are alike.
        kept = batch.response_mask & (batch.token_advantages > 0)
        weighted = kept.any(-1) & (accuracy > 0) & (accuracy < 1)
        return super().prepare(batch.with_columns(kl_weight=torch.where(weighted, weight, 1.0)), state)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        right, length = batch.rewards > 0.5, batch.response_mask.sum(-1).to(batch.rewards.dtype)
        groups = Groups(batch.rewards, batch.group_ids)
        right_length = right & (length > 0)  # a masked-out answer has no length
        count = groups.sum(right_length.to(batch.rewards.dtype))
        usual = groups.sum(torch.where(right, length, 0.0)) / count.clamp(min=1)
        longer = torch.where(~right & (count > 0), length - usual, 0.0).clamp(min=0)
        factor = 1 - torch.expm1(-longer * math.log1p(self.stretch))
        shaped = batch.token_advantages * factor.to(batch.log_probs.dtype).unsqueeze(-1)
        return shaped.expand_as(batch.log_probs)

    def regularizer(self, batch: Batch) -> Tensor | None:
        penalty = super().regularizer(batch)
        if penalty is None or not self.dads:
            return penalty
        return penalty * batch.columns["kl_weight"].unsqueeze(-1).to(penalty.dtype)
