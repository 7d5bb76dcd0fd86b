"""GHPO: where all answers to a prompt fail, draw them again behind a growing part of a right answer.

    all R_i = 0  ->  give the first ⌈k·fraction·T⌉ tokens of a right answer, k = 1, 2, 3, until one answer is right

Paper: "GHPO: Adaptive guidance for stable and efficient LLM reinforcement learning", 2507.10628, and its code. Default:
25 %, 50 %, 75 % of the solution, as in that code. The hinted prompt replaces the original in the update: in a toy the
hint is given as first tokens, which are not trained on.
OURS: at least one token is given, and at least one is left to choose.
Against `grpo`: the sampler alone; the loss is GRPO's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import Sampling


@register("ghpo")
@dataclass(frozen=True)
class GHPO(Sampling, GRPO):
    """GRPO; groups without a success begin behind `fraction`, then twice, then three times it of a right answer."""

    fraction: float = 0.25
    rounds: int = 3

    paper: ClassVar[Paper] = Paper("GHPO: adaptive guidance by hints", "2507.10628", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"rounds": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "fraction", 0.0, 1.0)
        check_range(self, "rounds", 0, 15)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None  # in `needs`
        failed = (attempt.rewards <= 0).all(-1, keepdim=True)
        if attempt.round >= self.rounds or not bool(failed.any()):
            return None
        horizon = attempt.tokens.shape[-1]
        length = min(horizon - 1, max(1, math.ceil(self.fraction * (attempt.round + 1) * horizon)))
        return Start(attempt.hints.unsqueeze(-2), torch.where(failed, length, 0).expand_as(attempt.given))
