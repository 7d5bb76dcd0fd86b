"""ERC: DAPO that learns from a token only while the policy's entropy there is still nearly what it was.

Paper: Su et al., "Entropy Ratio Clipping as a Soft Global Constraint for Stable Reinforcement Learning", 2512.05591.
    ρ_t = H(π)/H(π_old) in the token's state;    J = token-mean[M_t·min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)]
    M_t = 1[1 − δ_low < ρ_t < 1 + δ_high]; a token outside keeps its value and loses its gradient
The ratio r watches the sampled token alone, ρ all the others too. δ_low = δ_high = 0.05: the authors' script; the clip
is DAPO's, as in that script, without its dual clip. As in their code 1e-8 is added to both entropies.
Differs from `dapo` in the second condition only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch, Region
from etr.checks import check_ranges
from etr.objective import Paper, Reduction, State
from etr.objectives.dapo import DAPO
from etr.registry import register

TINY = 1e-8


@register("erc")
@dataclass(frozen=True)
class ERC(DAPO):
    """DAPO, with no gradient where H(π)/H(π_old) leaves (1 − delta_low, 1 + delta_high)."""

    delta_low: float = 0.05
    delta_high: float = 0.05

    paper: ClassVar[Paper] = Paper("Entropy Ratio Clipping", "2512.05591", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("dapo", {"delta_low": 1e9, "delta_high": 1e9})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, 0.0, 1e9, "delta_low", "delta_high", open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("old_entropy",)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        entropy = batch.clean().entropy
        assert entropy is not None  # in `needs`
        return batch.with_columns(old_entropy=entropy.detach()), state  # of the old policy: data

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        old = batch.columns["old_entropy"].to(log_ratio.dtype)
        ratio = (batch.entropy.detach() + TINY) / (old + TINY)  # which tokens to use is a decision
        inside = (ratio > 1 - self.delta_low) & (ratio < 1 + self.delta_high)
        per_token = super().surrogate(batch, log_ratio, region)
        return torch.where(inside, per_token, per_token.detach())  # the paper's: outside the value stays, not its pull
