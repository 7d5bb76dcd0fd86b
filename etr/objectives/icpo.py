"""ICPO: one answer per prompt is drawn with right examples in the context, and kept if it is right.

    the last answer of each group <- an answer of μ, the policy that sees examples;  wrong: drawn anew without them
    R <- R + bonus·(1 − t/bonus_steps) for it;  A = z-score of the whole group
    its tokens:  min(f(π/μ)·A, clip(f(π/μ), 1−ε_low, 1+ε_high)·A),  f(x) = x/(x + λ);  all others: GRPO

Paper: "Think outside the policy: in-context steered policy optimization", 2510.26519, from a note on it: one random
rollout is replaced, accepted only if right; the bonus decays; μ is the ratio's denominator, shaped before clipping. f
and the size of the bonus are not confirmed: λ = 0.1 is LUFFY's, `bonus`, `bonus_steps` and `shots` are OURS. In a toy,
examples in the context are a policy that surely takes the first `shots` of a right answer's tokens and goes on as π:
log μ is 0 on these, log π_old on the rest. The answers of a group are alike before they are judged, so the last one is
as random as any.
Name: another ICPO weighs answers by the model's own confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import OffPolicy, given
from etr.shaping import Shaping


@register("icpo")
@dataclass(frozen=True)
class ICPO(Shaping, OffPolicy, GRPO):
    """GRPO with one right answer per prompt from the policy that saw examples, with a bonus that decays."""

    shots: float = 0.5
    bonus: float = 0.1
    bonus_steps: int = 100
    damping: float = 0.1

    paper: ClassVar[Paper] = Paper("ICPO: in-context steered policy optimisation", "2510.26519", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"shots": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, low, high in (("shots", 0.0, 1.0), ("bonus_steps", 1, 2**31), ("damping", 1e-6, 1e6)):
            check_range(self, name, low, high)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints", "rewards", "group_ids"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "bonus")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        return {**super().init_state(run_shape, device), "step": torch.zeros(run_shape, device=device)}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None  # in `needs`
        size, horizon = attempt.tokens.shape[-2:]
        length = min(horizon, math.ceil(self.shots * horizon))
        if attempt.round > 1 or length == 0:
            return None
        last = torch.arange(size) == size - 1
        if attempt.round == 0:
            lengths = torch.where(last, length, 0).expand_as(attempt.given)
            return Start(attempt.hints.unsqueeze(-2), lengths, trained=True, log_probs=torch.zeros(horizon))
        wrong = (attempt.given > 0) & (attempt.rewards < 1)
        return Start(attempt.tokens, torch.zeros_like(attempt.given), anew=wrong) if bool(wrong.any()) else None

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        left = (self.bonus * (1 - state["step"] / self.bonus_steps)).clamp(min=0.0).unsqueeze(-1)
        batch, state = super().prepare(batch.with_columns(bonus=left.expand(batch.response_mask.shape[:-1])), state)
        return batch, {**state, "step": state["step"] + 1}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        helped = given(batch) > 0
        rewards = batch.rewards + torch.where(helped, batch.columns["bonus"], 0.0).to(batch.rewards.dtype)
        pooled = (Groups(rewards, batch.group_ids).sum(helped.to(rewards.dtype)) > 0).unsqueeze(-1)
        advantages = self.advantage(rewards, batch.group_ids).unsqueeze(-1).to(batch.advantages.dtype)
        return torch.where(pooled, advantages, batch.token_advantages).expand(batch.response_mask.shape)
