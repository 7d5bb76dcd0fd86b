"""EMPO: no labels; the reward of an answer is how many of its group say the same.

    f_k = |C_k|/G,  SE = −Σ_k f_k ln f_k,  R_i = f_{k(i)} if low·ln G ≤ SE ≤ high·ln G, else 0;  then GRPO

Paper: Zhang et al., "Right Question is Already Half the Answer" (EMPO), 2504.05812. In expectation over answers it
raises Σ_k f_k², so semantic entropy falls; it follows the majority, right or wrong.
A cluster is a final answer. In the LLM an answer without one is a cluster of its own, which agrees with nobody and gets
1/G; by the authors' script it gets 0, as a negative number does here (in f it is an answer like others). That script
asks for SE < ln G, that is for two answers that agree; with z-scores a group of G different answers has A = 0 anyway.
Their verl version drops prompts between two bounds on the entropy, whose values were not found: `entropy_low` and
`entropy_high`, as shares of ln G, 0 and 1 (all groups) by default, are ours.
Unlike GRPO it never sees a reward.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch
from etr.errors import FieldError
from etr.groups import Groups
from etr.objective import Category, Paper
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

ROUNDING = 1e-6  # of an entropy that is a bound exactly


@register("empo")
@dataclass(frozen=True)
class EMPO(Shaping, GRPO):
    """GRPO's loss with the share of the group that gives the same answer as reward."""

    entropy_low: float = 0.0
    entropy_high: float = 1.0

    paper: ClassVar[Paper] = Paper("Right Question is Already Half the Answer (EMPO)", "2504.05812", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to = None
    examples = ({"beta": 0.1}, {"entropy_low": 0.1, "entropy_high": 0.9})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.entropy_low <= self.entropy_high <= 1:
            raise FieldError(
                f"EMPO.entropy_low is {self.entropy_low:g} and entropy_high {self.entropy_high:g}; "
                "give 0 <= entropy_low <= entropy_high <= 1, shares of ln G"
            )

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"clusters", "group_ids"}

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {**super().exceptions, "learns_a_bandit": "it never sees a reward: it follows the majority"}

    def shape(self, batch: Batch) -> Tensor:
        return self.advantage(self.agreement(batch), batch.group_ids)  # type: ignore[arg-type]  # in `needs`

    def agreement(self, batch: Batch) -> Tensor:
        """R_i `[*R, B]`."""
        assert batch.clusters is not None and batch.group_ids is not None  # in `needs`
        share, _ = alike.answer_shares(batch.clusters, batch.group_ids, batch.log_probs[..., 0])
        groups = Groups(share, batch.group_ids)
        entropy = -groups.mean(share.log()) / groups.size.log()
        usual = (entropy >= self.entropy_low - ROUNDING) & (entropy <= self.entropy_high + ROUNDING)
        return torch.where(usual & (batch.clusters >= 0), share, 0.0)
