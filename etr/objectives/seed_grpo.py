"""SEED-GRPO: smaller updates on prompts whose answers disagree.

    SE(q) = −(1/K) Σ_k ln p(C_k|q)     K clusters of equal final answers, p(C_k|q) the probability of their members
    A^_i = (R_i − mean R)·f(α·SE/ln G)     f: linear 1 − x, exponential e^{−x}, focal (1 − x)²

Paper: Chen et al., "SEED-GRPO: Semantic Entropy Enhanced GRPO", 2505.12346, eqs. 1-9; α = 0.02, no std and no division
by length (Dr. GRPO) are the paper's. THIRD-PARTY in f: its linear form was read in a re-implementation, the others are
ours by their names. The probabilities of the G responses are scaled to sum 1 (`estimate` "sequence"), so that one
answer has SE = 0; "length" takes geometric means per token first, "frequency" counts: p(C_k) = |C_k|/G. The paper's
maximum ln G holds for equal probabilities; here SE is cut there (ours), so that f is never negative. Answers without
tokens (masked out) are in no cluster and not in G.
α = 0 is Dr. GRPO. EMPO makes semantic entropy the reward; here it is only a step size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import alike
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction
from etr.objectives.dr_grpo import DrGRPO
from etr.registry import register
from etr.shaping import Shaping

KINDS = ("linear", "exponential", "focal")
ESTIMATES = ("sequence", "length", "frequency")


@register("seed_grpo")
@dataclass(frozen=True)
class SEEDGRPO(Shaping, DrGRPO):
    """Dr. GRPO with A·f(alpha·SE/ln G), SE the semantic entropy of the group's answers."""

    alpha: float = 0.02
    kind: str = "linear"
    estimate: str = "sequence"

    paper: ClassVar[Paper] = Paper("SEED-GRPO: Semantic Entropy Enhanced GRPO", "2505.12346", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("dr_grpo", {"alpha": 0.0})
    examples = (  # type: ignore[assignment]  # the parent has a single one
        {"alpha": 1.0, "estimate": "frequency"},
        {"kind": "exponential", "alpha": 0.5},
        {"kind": "focal", "estimate": "length"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", KINDS)
        check_choice(self, "estimate", ESTIMATES)
        check_range(self, "alpha", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group_ids", "clusters"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.group_ids is not None and batch.clusters is not None  # in `needs`
        log_prob = batch.old_log_probs.sum(-1)  # of the whole response, 0 on padding
        if self.estimate == "length":
            log_prob = log_prob / batch.response_mask.sum(-1).clamp(min=1)
        elif self.estimate == "frequency":
            log_prob = torch.zeros_like(log_prob)
        rows = batch.response_mask.any(-1)
        x = self.alpha * semantic_entropy(log_prob, batch.clusters, batch.group_ids, rows).unsqueeze(-1)
        factor = {"linear": 1 - x, "exponential": (-x).exp(), "focal": (1 - x).square()}[self.kind]
        return (batch.token_advantages * factor).expand_as(batch.log_probs)


def semantic_entropy(log_prob: Tensor, clusters: Tensor, group_ids: Tensor, rows: Tensor) -> Tensor:
    """SE(q)/ln G of each response's group, cut at 1; of `rows` alone, the responses that have tokens."""
    groups, counted = Groups(log_prob, group_ids), alike.same(group_ids) & rows.unsqueeze(-2)
    members = counted & alike.same(clusters)
    most = torch.where(counted, log_prob.unsqueeze(-2), -torch.inf).amax(-1)
    chance = torch.where(rows, (log_prob - most).exp(), 0.0)
    chance = chance / torch.where(rows, groups.sum(chance), 1.0)
    mass = alike.total(members, chance).clamp(min=torch.finfo(chance.dtype).tiny)
    one = torch.where(rows, 1 / alike.count(members, log_prob), 0.0)  # each cluster counts once
    entropy = groups.sum(-mass.log() * one) / groups.sum(one).clamp(min=0.5)
    largest = groups.sum(rows.to(entropy.dtype)).log()
    return torch.where(largest > 0, entropy / torch.where(largest > 0, largest, 1.0), 0.0).clamp(0, 1)
