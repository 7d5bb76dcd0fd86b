"""Small hand-made batches that several test modules use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import etr
from etr.batch import Batch, Region
from etr.objective import Objective

OLD = -2.0  # log π_old of every hand-made token; an arbitrary number that must not matter


def _is_plain(objective: Objective) -> bool:
    return objective.needs <= {"group"} and "on_policy" not in objective.exceptions


# Objectives that these batches can feed and that start as the plain policy gradient: today all of them.
PLAIN = [name for name in etr.list_objectives() if _is_plain(etr.get(name))]


def rewards_of(*correct: int, size: int) -> tuple[Tensor, Tensor]:
    """0/1 rewards of groups of `size` with that many correct responses (the first ones), and their group ids."""
    rewards = torch.tensor([[1.0] * k + [0.0] * (size - k) for k in correct], dtype=torch.float64)
    return rewards.flatten(), torch.arange(len(correct)).repeat_interleave(size)


def bandit(objective: Objective, rewards: Tensor, ids: Tensor, log_ratio: Tensor | float = 0.0) -> Batch:
    """One token per response, moved by `log_ratio` from the old policy, with the objective's own advantages."""
    old = torch.full((*rewards.shape, 1), OLD, dtype=rewards.dtype)
    shift = torch.as_tensor(log_ratio, dtype=rewards.dtype).expand(rewards.shape).unsqueeze(-1)
    return Batch(
        log_probs=old + shift,
        old_log_probs=old,
        response_mask=torch.ones_like(old, dtype=torch.bool),
        advantages=objective.advantage(rewards, ids),
        group=etr.group_stats(rewards, ids),
    )


def tokens(log_ratio: Sequence[Sequence[float]], advantages: Sequence[float], **more: Any) -> Batch:
    """Responses of given token log-ratios, padded with NaN to the longest."""
    length = max(map(len, log_ratio))
    rows = [[*row, *[torch.nan] * (length - len(row))] for row in log_ratio]
    shift = torch.tensor(rows, dtype=torch.float64)
    given = torch.tensor(advantages, dtype=torch.float64)
    return Batch(OLD + shift, torch.full_like(shift, OLD), ~shift.isnan(), given, **more)


def region_of(objective: Objective, batch: Batch) -> Region:
    """The region that the loss uses, `[*R, B, T]`."""
    region = etr.policy_loss(objective, batch).region
    return Region(*(bound.expand_as(batch.log_probs) for bound in region))


def gradient(objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss and its gradient with respect to the log-probs."""
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf to read the gradient from
    fields = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    loss = etr.policy_loss(objective, Batch(**{**fields, "log_probs": leaf})).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]
