"""DSDR: a reward for right answers that differ from the others, and an entropy bonus on right answers alone.

    R~_i = R_i + λ_d·min(d_i, σ_d)·1[right],   A = z-score of R~ in the group        (between responses)
    w_i  = exp(τ·d̄_i)/Σ_{right j} exp(τ·d̄_j),   d̄ = min(d, σ_d),   0 for wrong ones
    J = J_GRPO(R~) − λ_l·Σ_i w_i·(1/T_i) Σ_t r·log π        (within responses: importance-sampled entropy)

Paper: "DSDR: Dual-Scale Diversity Regularization", 2602.19895, eqs. 4-20. λ_d = 0.001 is the paper's default, λ_l is
one of the values it tried; τ = 1 and σ_d = 1 (no bound) are ours, none were found. The paper's d_i is the mean of an
embedding distance and of the share of formulas that no other response has. OURS in their place, without embeddings: the
mean Jaccard distance between the sets of tokens of two responses, and the share of a response's tokens that come behind
a beginning which no other response of the group has. Both lie in [0, 1]; d_i is their mean.
The local term is the paper's under the default mean over tokens and responses; "token-mean" weighs long answers more.
Right is a reward above 1/2. In a group of right answers alone the z-score blows the small bonus up to full size.
bonus = 0 and local = 0 is GRPO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios
from etr.batch import Batch
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.sequences import dissimilarity
from etr.shaping import Shaping


@register("dsdr")
@dataclass(frozen=True)
class DSDR(Shaping, GRPO):
    """GRPO on R + bonus·min(d, cap)·1[right], and − local·w·r·log π on right answers, w = softmax(tau·d)."""

    bonus: float = 0.001
    local: float = 0.001
    tau: float = 1.0
    cap: float = 1.0

    paper: ClassVar[Paper] = Paper("DSDR: Dual-Scale Diversity Regularization", "2602.19895", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"bonus": 0.0, "local": 0.0})
    examples = ({"bonus": 0.3, "local": 0.1, "tau": 4.0, "cap": 0.5}, {"beta": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("bonus", "local", "tau"):
            check_range(self, name, 0.0, 1e6)
        check_range(self, "cap", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "tokens"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "dsdr_difference", "dsdr_weight")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        rewards, ids, tokens = batch.rewards, batch.group_ids, batch.tokens
        assert rewards is not None and ids is not None and tokens is not None  # in `needs`
        different = dissimilarity(tokens, batch.response_mask, ids).to(rewards.dtype).clamp(max=self.cap)
        groups = Groups(rewards, ids)
        pull = torch.where(rewards > 0.5, (self.tau * (different - self.cap)).exp(), 0.0)  # d ≤ cap: no overflow
        total = groups.sum(pull)
        # Times G, because the aggregation divides the sum over a group by its size.
        weight = torch.where(total > 0, groups.size * pull / torch.where(total > 0, total, 1.0), 0.0)
        return super().prepare(batch.with_columns(dsdr_difference=different, dsdr_weight=weight), state)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        extra = self.bonus * batch.columns["dsdr_difference"]
        return self.advantage(batch.rewards + torch.where(batch.rewards > 0.5, extra, 0.0), batch.group_ids)

    def regularizer(self, batch: Batch) -> Tensor | None:
        penalty = super().regularizer(batch)
        if self.local == 0:
            return penalty
        weight = self.local * batch.columns["dsdr_weight"].unsqueeze(-1)
        surprise = weight * ratios.token(batch).exp() * batch.log_probs  # minus an entropy, to be minimised
        return surprise if penalty is None else penalty + surprise
