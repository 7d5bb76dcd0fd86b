"""Polychromic objective: the reward of a set of answers is its mean reward times its diversity.

    f_S = (1/n Σ_{j∈S} R_j)·d(S),   d(S) = share of different answers in S
    A_i = mean of f_S over the n-subsets S of the group that contain i − mean of f_S over all of them

Paper: "Polychromic Objectives for Reinforcement Learning", 2509.25424. THIRD-PARTY (a note): every member of a set gets
the set's advantage f_S − f̄. The paper draws sets at chosen states of a rollout; this is the version for a group of
answers, over all subsets instead of some, in closed form (below), so that nothing is drawn. n was not found: 4 is ours.
Which answers are different says `clusters` (ours; the paper: the set of rooms visited). The critic at other states and
the KL penalty are left out. n = 1 is GRPO with A = R − mean: then every set has diversity 1.

Given i ∈ S, another member a is in S with chance (n−1)/(G−1), and an answer that m others gave is missing in S with
chance C(G−1−m, n−1)/C(G−1, n−1), or C(G−2−m, n−2)/C(G−2, n−2) when a ∈ S is given too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages, alike
from etr.batch import Batch
from etr.checks import check_range
from etr.errors import InputError
from etr.groups import Groups, found
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("polychromic")
@dataclass(frozen=True)
class Polychromic(Shaping, GRPO):
    """GRPO with A_i = mean of f_S over the sets with i − mean of f_S, f_S = mean reward × diversity of S."""

    set_size: int = 4

    paper: ClassVar[Paper] = Paper("Polychromic Objectives for RL", "2509.25424", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"set_size": 1})
    examples = ({"set_size": 2}, {"set_size": 3})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "set_size", 1, 1000)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "clusters"}

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.set_size == 1:
            return super().exceptions
        several = {"learns_a_bandit": "a set of one answer has the least diversity, so the optimum keeps several arms"}
        return {**super().exceptions, **several}

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_center(rewards, group_ids)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None and batch.clusters is not None  # in `needs`
        size = Groups(batch.rewards, batch.group_ids).size
        if found(size < self.set_size):
            raise InputError(f"polychromic.set_size is {self.set_size}, above the size of a group; raise group_size")
        value = set_values(batch.rewards, batch.clusters, batch.group_ids, self.set_size)
        return advantages.group_center(value, batch.group_ids)


def missing(members: Tensor, size: Tensor, drawn: int) -> Tensor:
    """C(size − members, drawn)/C(size, drawn): the chance that none of `members` of `size` is among `drawn`."""
    chance = torch.ones_like(size)
    for k in range(drawn):
        chance = chance * (size - members - k).clamp(min=0) / (size - k).clamp(min=1)
    return chance


def set_values(rewards: Tensor, clusters: Tensor, group_ids: Tensor, n: int) -> Tensor:
    """Mean of f_S over all n-subsets S of the group that contain i, `[*R, B]`."""
    groups, same = Groups(rewards, group_ids), alike.same(group_ids)
    answer = same & alike.same(clusters)
    size, members = groups.size, alike.count(answer, rewards)
    # With i given: its own answer is there, every other one with the chance that it is not missing.
    hit = (1 - missing(members, size - 1, n - 1)) / members
    alone = rewards * (1 + groups.sum(hit) - alike.total(answer, hit))
    if n == 1:
        return alone
    # With i and a given: both their answers, which may be one, and each third answer.
    third = (1 - missing(members, size - 2, n - 2)) / members
    rest, own = groups.sum(third), alike.total(answer, third)  # `own`: what the answer of i would have added
    both = torch.where(answer, 1 + (rest - own).unsqueeze(-1), 2 + (rest - own).unsqueeze(-1) - own.unsqueeze(-2))
    others = same & ~torch.eye(same.shape[-1], dtype=torch.bool, device=same.device)
    beside = torch.where(others, both * rewards.unsqueeze(-2), 0.0).sum(-1)
    return (alone + (n - 1) / (size - 1) * beside) / n**2
