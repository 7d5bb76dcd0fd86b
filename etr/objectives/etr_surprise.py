"""Surprise-elastic regions: more room where a move raises entropy, less where it lowers it.

This project's own, no paper's. To first order a token's share in the entropy change is −(log π + H)·(r − 1) (2505.22617
has the covariance, `etr.observatory` the identity): a right answer raises entropy if it was more surprising than the
mean, a wrong one, on its way down, if it was less. So the width follows the sign of the advantage times the surprise:

    s_t = −log π_old(y_t),  s̄ = mean of s over the tokens of the batch with A ≠ 0
    ε_t = clamp(ε·(1 + λ·tanh(sign(A)·(s_t − s̄))), ε_min, ε_max)        for each bound

RECONSTRUCTED in the sense of the evidence marks: the formula is ours. It bounds how fast entropy may be spent and adds
no bonus that would pull towards the uniform policy.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("etr_surprise")
@dataclass(frozen=True)
class ETRSurprise(GRPO):
    """GRPO with ε_t = clamp(ε·(1 + surprise·tanh(sign(A)·(s_t − s̄))), eps_min, eps_max)."""

    surprise: float = 0.75
    eps_min: float = 0.02
    eps_max: float = 0.5

    paper: ClassVar[Paper] = Paper("Surprise-elastic regions, this project's own", "", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"surprise": 0.0})

    @property
    def columns(self) -> tuple[str, ...]:
        return ("mean_surprise",)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        kept = (clean.response_mask & (clean.token_advantages != 0)).double()
        count = kept.sum((-2, -1)).clamp(min=1)  # no token has a gradient: any mean will do
        mean = -(clean.old_log_probs * kept).sum((-2, -1)) / count
        column = mean.unsqueeze(-1).expand(batch.response_mask.shape[:-1])
        return dataclasses.replace(batch, columns={**batch.columns, "mean_surprise": column}), state

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        mean = batch.columns["mean_surprise"].unsqueeze(-1).to(batch.old_log_probs.dtype)
        excess = -batch.old_log_probs - mean  # old log-probs are data: the region is not optimised through
        scale = 1 + self.surprise * torch.tanh(batch.token_advantages.sign() * excess)
        return regions.elastic(scale, self.eps_low, self.eps_high, self.eps_min, self.eps_max)
