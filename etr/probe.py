"""Floor 3: one answer of a group, looked at while its probability changes: what cards of objectives show.

Every input is there and consistent: a prompt with four possible answers, the first of them right, and a group of eight
of which a given number is right. Each point of a curve is a run of its own, so that statistics of the batch are too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch
from etr.groups import group_stats
from etr.loss import gradient_coefficient, policy_loss
from etr.objective import Objective

CHANCES = (0.35, 0.3, 0.2, 0.15)  # of the four answers under the old policy
SIZE = 8


class Probe(NamedTuple):
    """One answer at several ratios: its advantage, objective, gradient coefficient and bounds, each `[points]`."""

    advantage: Tensor
    value: Tensor
    coefficient: Tensor
    low: Tensor
    high: Tensor


def probe(objective: Objective, ratio: Tensor, right: bool, correct: int = SIZE // 2) -> Probe:
    """An answer, right or wrong, of a group with `correct` right ones of eight, at ratios `[points]` below 2.8.

    The other answers stay as probable relative to one another as they were, and their ratios are 1.
    """
    row = 0 if right else correct
    arms, rewards = _answers(correct)
    old = torch.tensor(CHANCES, dtype=torch.float64).log()
    batch = _batch(objective, arms, rewards, old.expand(len(ratio), SIZE, 1, len(old)))
    state = objective.init_state((len(ratio),), ratio.device)
    with torch.no_grad():  # statistics of the batch
        batch, _ = objective.prepare(batch, state)
    batch = dataclasses.replace(batch, **_moved(batch, old, int(arms[row]), row, ratio))
    out = policy_loss(objective, batch, objective.denominator(batch.response_mask), check=False)
    coefficient = gradient_coefficient(objective, batch)
    shown = (batch.token_advantages.expand_as(coefficient), out.per_token, coefficient, *out.region)
    return Probe(*(value.detach()[:, row, 0] for value in shown))  # only drawn


def _answers(correct: int) -> tuple[Tensor, Tensor]:
    """Answers of the group, the right ones first, and their rewards."""
    wrong = [1 + i % (len(CHANCES) - 1) for i in range(SIZE - correct)]
    arms = torch.tensor([0] * correct + wrong)
    return arms, (arms == 0).double()


def _batch(objective: Objective, arms: Tensor, rewards: Tensor, full: Tensor) -> Batch:
    """The group before any update, once for every point; full: `[points, 8, 1, 4]`."""
    points = len(full)
    tokens, rewards = arms.expand(points, SIZE).unsqueeze(-1), rewards.expand(points, SIZE)
    ids = torch.zeros(points, SIZE, dtype=torch.long)
    old = full.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    order = full.sort(-1, descending=True)
    return Batch(
        log_probs=old,
        old_log_probs=old,
        response_mask=torch.ones_like(tokens, dtype=torch.bool),
        advantages=objective.advantage(rewards, ids),
        group=group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids,
        tokens=tokens,
        ref_log_probs=old,
        rollout_log_probs=old,
        entropy=-(full.exp() * full).sum(-1),
        values=torch.full_like(old, CHANCES[0]),
        turns=torch.zeros_like(tokens),
        clusters=arms.expand(points, SIZE),
        components=torch.stack([rewards, rewards], -1),
        full_log_probs=full,
        top_tokens=order.indices,
        top_log_probs=order.values,
        influence=-old,
    )


def _moved(batch: Batch, old: Tensor, arm: int, row: int, ratio: Tensor) -> dict[str, Any]:
    """The columns of a policy that gives `arm` `ratio` times its old probability, in the probed row."""
    assert batch.full_log_probs is not None and batch.top_tokens is not None  # from `_batch`
    chance = ratio * old[arm].exp()
    rest = ((1 - chance) / (1 - old[arm].exp())).unsqueeze(-1) * old.exp()
    rest[:, arm] = chance
    full = batch.full_log_probs.clone()
    full[:, row, 0] = rest.log()
    log_probs = batch.old_log_probs.clone()
    log_probs[:, row, 0] += ratio.log()
    return {
        "log_probs": log_probs,
        "entropy": -(full.exp() * full).sum(-1),
        "full_log_probs": full,
        "top_log_probs": full.gather(-1, batch.top_tokens),
    }
