"""COPO: where a group agrees, compare it with the other prompts of the batch instead of within itself.

    E(q) = −Σ_k f_k log2 f_k of the group's answers,   λ_G = (1 − 1/G)/log2 G
    R_g(q) = mean_i R_i·(1 − λ_G·E(q)),   A_g = z-score of R_g over the prompts of the batch
    J = w·S(r, A_i) + (1 − w)·S(r, A_g),   w = σ(k·(E(q) − b)),   S(r, A) = min(r·A, clip(r)·A)

Paper: "COPO: consistency-aware policy optimization", 2508.04138, read in the authors' code (hijih/copo-code). k = 1 is
its default; b is in run scripts that were not read: 1 bit is ours. kind: "soft" as above; "forced" has w = 0 too
where A_i = 0, that is in unanimous groups; "hard" w = 1[E > b]; "local" w = 1, which is GRPO. Ours: population std,
each prompt once, A_g = 0 where all prompts are equal. The two losses stay apart, as in that code: where their
advantages differ in sign, one of them goes on beyond the region after the other was clipped.
Not COPO, count-based or constrained policy optimisation, which have the same short name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch, Region
from etr.checks import check_choice, check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping
from etr.surrogates import pessimistic_clip

ONE_AT_A_TIME = ("hard", "local")  # kinds of which each token has one of the two losses
KINDS = ("soft", "forced", *ONE_AT_A_TIME)


@register("copo")
@dataclass(frozen=True)
class COPO(Shaping, GRPO):
    """w·clipped(A within the group) + (1 − w)·clipped(A between the prompts), w = σ(steepness·(E − bits))."""

    kind: str = "soft"
    steepness: float = 1.0
    bits: float = 1.0

    paper: ClassVar[Paper] = Paper("COPO: Consistency-Aware Policy Optimization", "2508.04138", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"kind": "local"})
    examples = ({"kind": "forced"}, {"kind": "hard"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", KINDS)
        check_range(self, "steepness", 0.0, 1e6)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "clusters"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "copo_global")

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.kind in ONE_AT_A_TIME:
            return super().exceptions
        two = "two clipped losses, of which one may go on where the other was clipped"
        return {**super().exceptions, "no_advantage_no_gradient": two, "gradient_follows_advantage": two}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        between = self.between(batch.clean()).expand_as(batch.log_probs)
        return super().prepare(batch.with_columns(copo_global=between), state)

    def shape(self, batch: Batch) -> Tensor:
        return self.local_weight(batch) * batch.token_advantages + batch.columns["copo_global"]

    def between(self, batch: Batch) -> Tensor:
        """(1 − w)·A_g, `[*R, B, 1]` or `[*R, B, T]`."""
        rewards, ids, clusters = batch.rewards, batch.group_ids, batch.clusters
        assert rewards is not None and ids is not None and clusters is not None  # in `needs`
        groups = Groups(rewards, ids)
        agreement = 1 - (1 - 1 / groups.size) / groups.size.log2() * bits(clusters, ids, rewards)
        return (1 - self.local_weight(batch)) * prompt_zscore(groups.mean(rewards) * agreement, groups).unsqueeze(-1)

    def local_weight(self, batch: Batch) -> Tensor:
        """w, `[*R, B, 1]` or `[*R, B, T]`."""
        assert batch.rewards is not None and batch.group_ids is not None and batch.clusters is not None
        excess = bits(batch.clusters, batch.group_ids, batch.rewards).unsqueeze(-1) - self.bits
        if self.kind == "local":
            return torch.ones_like(excess)
        if self.kind == "hard":
            return (excess > 0).to(excess.dtype)
        weight = torch.sigmoid(self.steepness * excess)
        return torch.where(batch.token_advantages == 0, 0.0, weight) if self.kind == "forced" else weight

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        if self.kind in ONE_AT_A_TIME:
            return super().surrogate(batch, log_ratio, region)
        between = batch.columns["copo_global"]
        within = batch.token_advantages - between
        parts = (pessimistic_clip(log_ratio, advantages, region, self.dual_clip) for advantages in (within, between))
        return sum(parts, torch.zeros_like(log_ratio))


def bits(clusters: Tensor, group_ids: Tensor, like: Tensor) -> Tensor:
    """Entropy of the answers of each response's group, in bits, `[*R, B]`."""
    share, _ = alike.answer_shares(clusters, group_ids, like)
    return -Groups(like, group_ids).mean(share.log2())


def prompt_zscore(values: Tensor, groups: Groups) -> Tensor:
    """Z-score over prompts of a value that the members of a group share; 0 where all prompts are equal."""
    weight, shared = 1 / groups.size.double(), values.double()
    count = weight.sum(-1, keepdim=True)
    centred = shared - (weight * shared).sum(-1, keepdim=True) / count
    std = ((weight * centred.square()).sum(-1, keepdim=True) / count).sqrt()
    some = std > 1e-6 * shared.abs().amax(-1, keepdim=True)  # equal values may differ by single precision's rounding
    return torch.where(some, centred / torch.where(some, std, 1.0), 0.0).to(values.dtype)
