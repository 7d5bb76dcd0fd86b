"""SPEAR: imitate one's own good answers: a buffer of them is replayed, ever more, with advantages of today.

    kept:      answers with A > 0 and R = 1, at most `capacity`, for `age` steps
    replayed:  up to `share` of each group, never all of it, the oldest first, each once
               Ã = max(0, R − P50(recent group means))
    J = GRPO on the others + c(t)·[min(ρÃ, clip(ρ)Ã)] on the replayed,  ρ = π/π_then,  c(t) = c_max·(1 − cos(πt/τ))/2

Paper: "Learn the ropes, then trust the wins: self-imitation with progressive exploration (SPEAR)", 2509.22601, and its
code. Default: capacity 2048, age 10, a window of 10240, c_max = 1 (their README; 0.001 in a script), τ = 200 steps, c
constant after them.
OURS: share = 1/4; replayed answers take the place of samples (theirs are batches of their own, used when the buffer is
full) and stand outside the group's mean and std; their plain clip in the place of Clip-Cov; the window counts answers,
each with its group's mean; the reward for tool calls is a reward and not here. Also under a noisy verifier a kept
answer has R = 1.
Against `grpo`: the replayed answers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from etr import ratios
from etr.batch import Batch
from etr.checks import check_range
from etr.groups import Groups
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.replay import buffer_in, empty
from etr.samplers import Attempt, Start
from etr.sampling import Demonstrated, given, zscore_among
from etr.shaping import Shaping


@register("spear")
@dataclass(frozen=True)
class SPEAR(Shaping, Demonstrated, GRPO):
    """GRPO with a share of each group replayed from the run's own successes, its weight rising by a cosine."""

    share: float = 0.25
    capacity: int = 2048
    age: int = 10
    window: int = 10240
    c_max: float = 1.0
    ramp: int = 200

    paper: ClassVar[Paper] = Paper("SPEAR: self-imitation with progressive exploration", "2509.22601", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"share": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "share", 0.0, 1.0)
        for name in ("capacity", "age", "window", "ramp"):
            check_range(self, name, 1, 2**31)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "tokens", "rollout_log_probs"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "replay_advantage")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        means, step = torch.zeros(*run_shape, 0, device=device), torch.zeros(run_shape, device=device)
        own = {**empty(run_shape, self.capacity, device).state(), "means": means.double(), "step": step.double()}
        return {**super().init_state(run_shape, device), **own}

    def start(self, attempt: Attempt) -> Start | None:
        (prompts, size, horizon), buffer = attempt.tokens.shape[-3:], buffer_in(dict(attempt.state))
        slots = min(size - 1, round(self.share * size))  # an answer of its own must say how good the policy is today
        if attempt.round or slots == 0 or buffer.tokens.shape[-1] != horizon:  # no width: nothing is in it yet
            return None
        taken = [buffer.take(rank, prompts) for rank in range(slots)]
        found, tokens, made = zip(*taken, strict=True)
        before = (size - slots, 0)  # the last of each group are replaced; which ones is all the same, they are alike
        whole = torch.where(pad(torch.stack(found, -1), before), horizon, 0)
        shown, known = (pad(torch.stack(parts, -2), (0, 0, *before)) for parts in (tokens, made))
        return Start(shown, whole, trained=True, log_probs=known)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.rewards is not None and clean.group_ids is not None and clean.tokens is not None  # in `needs`
        replayed = given(batch) > 0
        groups = Groups(clean.rewards, clean.group_ids)
        own = (~replayed).to(clean.rewards.dtype)
        means = groups.sum(clean.rewards * own) / groups.sum(own).clamp(min=1)
        recent = torch.cat([means.double(), state["means"]], -1)[..., : self.window]
        weight = self.c_max * (1 - torch.cos(math.pi * (state["step"] / self.ramp).clamp(max=1.0))) / 2
        today = (weight * (1 - recent.quantile(0.5, -1)).clamp(min=0.0)).unsqueeze(-1).expand(replayed.shape)
        batch, state = super().prepare(batch.with_columns(replay_advantage=today), state)
        kept = ~replayed & (clean.rewards >= 1) & (batch.token_advantages * batch.response_mask > 0).any(-1)
        ids = clean.group_ids.long().expand(replayed.shape)
        used = torch.zeros_like(ids).scatter_add(-1, ids, replayed.long())
        buffer = buffer_in(state).older(used, self.age).with_new(clean.tokens, clean.old_log_probs, ids, kept)
        return batch, {**state, **buffer.state(), "means": recent, "step": state["step"] + 1}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        replayed = given(batch) > 0
        mixed = Groups(batch.rewards, batch.group_ids).sum(replayed.to(batch.rewards.dtype)) > 0
        own = zscore_among(batch.rewards, batch.group_ids, ~replayed)
        shaped = torch.where(replayed, batch.columns["replay_advantage"].to(own.dtype), own)
        shaped = torch.where(
            mixed.unsqueeze(-1), shaped.unsqueeze(-1).to(batch.advantages.dtype), batch.token_advantages
        )
        return shaped.expand(batch.response_mask.shape)

    def ratio(self, batch: Batch) -> Tensor:
        assert batch.rollout_log_probs is not None  # in `needs`
        limit = ratios.LOG_RATIO_LIMIT
        then = (batch.log_probs - batch.rollout_log_probs).clamp(-limit, limit)
        return torch.where(self.demonstrated(batch), then, super().ratio(batch))
