"""REAL: rewards as labels: a group's answers are classified into right and wrong by how the policy moves on them.

Paper: "Rewards as Labels: Revisiting RLVR from a Classification Perspective", 2602.05630, as ms-swift documents it.
With the score s_i = (1/T_i) Σ_t log r_{i,t} of response i and the right (+) and wrong (−) answers of its group,
    L = log(1 + Σ_+ e^{−s_i/τ}) + log(1 + Σ_− e^{s_i/τ}),    averaged over groups
    c_i = A_i·(1 + n)·e^{∓s_i/τ} / (1 + Σ e^{∓s/τ}),    A_i = ±(G/τ)/(1 + n),  n the answers of its own kind
|c| falls where the answer has moved as it should and never passes G/τ: neither a weight that grows with r (GRPO's for
right answers) nor one without bound (for wrong ones). A group of equal answers teaches too. The factor G of A turns the
mean over responses into one over groups. OURS: "right" is a reward above ½, and G and n count the answers that have
tokens, so that one that is masked out is no part of the loss. τ = 0.5: ms-swift's default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.groups import Groups
from etr.listwise import Listwise
from etr.objective import Objective, Paper
from etr.registry import register
from etr.within import group_logsumexp, group_sum, listwise, responses


@register("real")
@dataclass(frozen=True)
class REAL(Listwise, Objective):
    """L = log(1 + Σ_+ e^{−s/τ}) + log(1 + Σ_− e^{s/τ}) of each group, s = mean_t log r."""

    tau: float = 0.5

    paper: ClassVar[Paper] = Paper("Rewards as Labels", "2602.05630", "third-party")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", 0.0, 1e9, open_low=True)

    def counted(self, rewards: Tensor, group_ids: Tensor, there: Tensor) -> Tensor:
        groups, right = Groups(rewards, group_ids), rewards > 0.5
        size, rights = (groups.sum(chosen.to(rewards.dtype)) for chosen in (there, there & right))
        alike = torch.where(right, rights, size - rights)
        return torch.where(there, torch.where(right, size, -size) / self.tau / (1 + alike), 0.0)

    def ratio(self, batch: Batch) -> Tensor:
        return ratios.sequence(batch)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        assert batch.group_ids is not None  # in `needs`
        score, advantage, _ = responses(batch, log_ratio)  # A = 0 without tokens: neither right nor wrong
        weight, loss = torch.zeros_like(score), torch.zeros_like(score)
        for sign in (1.0, -1.0):
            chosen, surprise = sign * advantage > 0, -sign * score / self.tau
            total = group_logsumexp(surprise, batch.group_ids, chosen)
            total = torch.logaddexp(total, torch.zeros_like(total))
            count = group_sum(chosen.to(score.dtype), batch.group_ids)
            weight = torch.where(chosen, (surprise - total).exp() * (1 + count), weight)
            loss = loss + total
        return listwise(batch, weight.unsqueeze(-1) * batch.token_advantages, loss)
