"""Pass@k training: the reward of a set of k answers is its best one's; each answer gets its share.

    ρ = 1 − C(n−c, k)/C(n, k),   σ = √(ρ(1−ρ))        n answers of which c are right: pass@k and its std
    A_right = (1 − ρ)/(σ + ε),   A_wrong = (1 − ρ − C(n−c−1, k−1)/C(n−1, k−1))/(σ + ε)      kind = "subsets"
    A_i = max(R_i − max of the others, 0), and with `scale` divided by the std              kind = "best"

"subsets": Chen et al., "Pass@k Training", 2508.10751; equal to the mean over all k-subsets of the z-scored best reward.
Once every subset has a right answer (n − c < k) all is 0: nothing is left to explore. "best": "Pass@k as the objective"
of 2503.19595 as verl has it (`grpo_passk`): only the best response learns, by its lead over the second. With `scale`
verl divides by the sample std, this file by the population's, as GRPO here.
Default: ε = 1e-6 the authors' script; k = 2 is ours, so that small groups learn too. k above n counts as n.
Right is a reward above 1/2. With k = 1 it is GRPO's advantage (which also takes graded rewards).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.errors import FieldError, unknown
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register

KINDS = ("subsets", "best")


def none_right(wrong: Tensor, size: Tensor, k: int) -> Tensor:
    """C(wrong, k)/C(size, k): the chance that k of `size` answers, drawn without return, are all wrong."""
    chance = torch.ones_like(size)
    for drawn in range(k):
        left = (size - drawn).clamp(min=1)
        chance = torch.where(size > drawn, chance * (wrong - drawn).clamp(min=0) / left, chance)
    return chance


@register("passk")
@dataclass(frozen=True)
class PassK(GRPO):
    """GRPO's loss with the advantage of pass@k."""

    k: int = 2
    kind: str = "subsets"
    scale: bool = False
    eps: float = 1e-6

    paper: ClassVar[Paper] = Paper("Pass@k Training for Adaptively Balancing Exploration", "2508.10751", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"k": 1, "kind": "subsets"})
    examples = ({"k": 3}, {"kind": "best"}, {"kind": "best", "scale": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in KINDS:
            raise FieldError(unknown("passk.kind", self.kind, KINDS))
        if self.k < 1 or not self.eps > 0:
            raise FieldError(f"PassK.k is {self.k} and eps {self.eps:g}; give k of at least 1 and eps above 0")

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.kind == "subsets":
            return super().exceptions
        return {
            **super().exceptions,
            "learns_a_bandit": "of 0/1 rewards only a lone right one leads, rare in its groups",
        }

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        usual = super().advantage(rewards, group_ids)  # refuses what no group advantage can use
        if self.kind == "best":
            return self.lead(rewards, group_ids)
        return usual if self.k == 1 else self.of_subsets(rewards, Groups(rewards, group_ids))

    def of_subsets(self, rewards: Tensor, groups: Groups) -> Tensor:
        right = rewards > 0.5
        wrong = groups.sum((~right).to(rewards.dtype))
        fail = none_right(wrong, groups.size, self.k)  # 1 − ρ
        spread = (fail * (1 - fail)).sqrt() + self.eps
        beside = none_right(wrong - 1, groups.size - 1, self.k - 1)  # no right one among the others of the subset
        return torch.where(right, fail, fail - beside) / spread

    def lead(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        same = alike.same(group_ids)
        others = same & ~torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
        second = torch.where(others, rewards.unsqueeze(-2), -torch.inf).amax(-1)
        lead = (rewards - second).clamp(min=0)
        if not self.scale:
            return lead
        groups = Groups(rewards, group_ids)
        spread = (groups.mean(rewards.square()) - groups.mean(rewards).square()).clamp(min=0).sqrt()
        return lead / (spread + self.eps)
