"""Expert anchors: where all answers to a prompt fail, a right one takes the place of some, and is trained on.

    no R_i > 0  ->  the last `experts` answers become a right one;  A_i = z-score of the group with them
    their tokens:  min(f(π)·A, clip(f(π), 1−ε_low, 1+ε_high)·A),  f(x) = x/(x + λ);  all others: GRPO

Paper: "DaGRPO", 2512.06337, the second of its two mechanisms (the first masks pairs of answers that are too alike);
reconstructed from its abstract. OURS: one expert answer, its policy unknown, so that its probability counts as 1 and
the ratio is π itself, with the shaping and λ = 0.1 of LUFFY (2504.14945); the verifier judges it like any answer.
Against `grpo`: a group in which all fail has a signal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import OffPolicy


@register("expert_anchor")
@dataclass(frozen=True)
class ExpertAnchor(OffPolicy, GRPO):
    """GRPO with a right answer in groups that fail, weighted by π/(π + damping)."""

    experts: int = 1
    damping: float = 0.1

    paper: ClassVar[Paper] = Paper("DaGRPO (its expert anchors)", "2512.06337", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"experts": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "experts", 0, 1024)
        check_range(self, "damping", 1e-6, 1e6)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None  # in `needs`
        if attempt.round:
            return None
        size, horizon = attempt.tokens.shape[-2:]
        failed = (attempt.rewards <= 0).all(-1, keepdim=True)
        replaced = failed & (torch.arange(size) >= size - self.experts)  # which ones is all the same: they are alike
        unknown = torch.zeros(horizon)  # log 1
        return Start(attempt.hints.unsqueeze(-2), torch.where(replaced, horizon, 0), trained=True, log_probs=unknown)
