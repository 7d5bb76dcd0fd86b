"""Dynamic sampling: DAPO with its sampler, which draws groups without signal again.

    all R_i of a group equal  ->  draw the group again, at most `refills` times
    J = Σ over answers of groups with signal, divided by their number of tokens only

Paper: Yu et al., "DAPO", 2503.14476 (keep groups with 0 < correct < G, sample until the batch is full); default: ten
rounds of generation in the authors' script, the first one and nine refills.
OURS: a refill draws the same prompt again, where DAPO goes on to other prompts: here every prompt is in every batch.
What is still without signal then is left out of the denominator (`drop`), as if it had not been sampled; with
drop=False it counts. As advantages: A·N/N_signal, N the number of tokens (or answers, by the aggregation).
Against `dapo`: the sampler and the denominator, nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.dapo import DAPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import Sampling
from etr.shaping import Shaping


@register("dynamic_sampling")
@dataclass(frozen=True)
class DynamicSampling(Shaping, Sampling, DAPO):
    """DAPO on groups with signal: the others are drawn again, and what stays without counts for nothing."""

    refills: int = 9
    drop: bool = True

    paper: ClassVar[Paper] = Paper("DAPO: an open-source LLM reinforcement learning system", "2503.14476", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("dapo", {"refills": 0, "drop": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "refills", 0, 15)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"group"}

    def start(self, attempt: Attempt) -> Start | None:
        same = (attempt.rewards == attempt.rewards[..., :1]).all(-1, keepdim=True)
        if attempt.round >= self.refills or not bool(same.any()):
            return None
        return Start(attempt.tokens, torch.zeros_like(attempt.given), anew=same.expand_as(attempt.given))

    def shape(self, batch: Batch) -> Tensor:
        if not self.drop:
            return batch.advantages
        assert batch.group is not None  # in `needs`
        mask = batch.response_mask
        signal = mask & (batch.group.var > 0).unsqueeze(-1)
        all_of, of_signal = (self._count(m).clamp(min=1) for m in (mask, signal))
        scale = (all_of / of_signal).to(batch.advantages.dtype)[..., None, None]
        return batch.token_advantages.expand(mask.shape) * scale

    def _count(self, mask: Tensor) -> Tensor:
        return mask.sum((-2, -1)) if self.aggregation == "token-mean" else mask.any(-1).sum(-1)
