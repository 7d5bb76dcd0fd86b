"""DISCO: rewards count more for rare domains and hard prompts, and groups are only centred.

    SC = mean reward of the group,   w_diff = 1/(SC + δ),   w_dom = ln(1 + 1/p_d)
    R'_i = R_i·w_dom·w_diff,   A_i = R'_i − mean(R')                                   kind = "inverse"
    A_i = R_i − mean(R), where negative times ln(1 + 1/(SC + δ))                       kind = "log"

Paper: "DISCO Balances the Scales", 2505.15074; A has no std, as Dr. GRPO's; rewards lie in [0, 1].
Default: kind and δ = 1e-5 are the authors' script's; "log" stands there as an alternative. Its domain weights are
constants, 0.847 for a share of 75 % and 2.565 for 8.3 %: that w_dom is ln(1 + 1/p_d) is inferred from them. A batch has
no column for the domain of a prompt, so w_dom is 1 here: `domain_weight` is the formula, and a subclass that knows the
domains overrides `domain_weights`. Our choice: the mean over tokens of GRPO. Not DisCO (2505.12366), which maximises a
discriminative score under a constraint.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.errors import FieldError, unknown
from etr.groups import Groups, unit_rewards
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register

KINDS = ("inverse", "log", "none")


def domain_weight(share: float) -> float:
    """w_dom = ln(1 + 1/p_d) for a domain with that share of the prompts.

    >>> round(domain_weight(0.75), 3), round(domain_weight(0.0833), 3)
    (0.847, 2.565)
    """
    return math.log1p(1 / share)


@register("disco")
@dataclass(frozen=True)
class DISCO(GRPO):
    """GRPO's loss with A = R·w − mean(R·w), w = w_dom/(mean R + delta)."""

    kind: str = "inverse"
    delta: float = 1e-5

    paper: ClassVar[Paper] = Paper("DISCO Balances the Scales", "2505.15074", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("dr_grpo", {"kind": "none"})
    examples = ({"kind": "log"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise FieldError(unknown("disco.kind", self.kind, KINDS))
        if not self.delta > 0:
            raise FieldError(f"DISCO.delta is {self.delta:g}; give a number above 0")

    def domain_weights(self, group_ids: Tensor) -> Tensor | float:
        """w_dom of each response's prompt, `[*R, B]`; here 1, see above."""
        return 1.0

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        weighted = rewards * self.domain_weights(group_ids)
        centred = advantages.group_center(weighted, group_ids)
        if self.kind == "none":  # Dr. GRPO, which takes rewards of any size
            return centred
        accuracy = Groups(rewards, group_ids).mean(unit_rewards(rewards, "disco weighs by the success rate"))
        if self.kind == "inverse":
            return advantages.group_center(weighted / (accuracy + self.delta), group_ids)
        return torch.where(centred < 0, centred * torch.log1p(1 / (accuracy + self.delta)), centred)
