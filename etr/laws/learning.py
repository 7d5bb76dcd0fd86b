"""The last law: the objective must learn."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.groups import group_stats
from etr.laws.base import holds, law
from etr.loss import policy_loss
from etr.objective import Objective

RUNS, PROMPTS, SIZE, ARMS = 8, 4, 16, 3


@law
def learns_a_bandit(objective: Objective) -> None:
    """14. Finds the best of three arms (success 0.2, 0.5, 0.9) in 8 of 8 seeds."""
    rng, success = torch.Generator().manual_seed(0), torch.tensor([0.2, 0.5, 0.9])
    logits = torch.zeros(RUNS, 1, ARMS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    state = objective.init_state((RUNS,), logits.device)
    for _ in range(60):
        with torch.no_grad():
            chances = logits.softmax(-1)[:, 0]
            arms = torch.multinomial(chances, PROMPTS * SIZE, replacement=True, generator=rng).unsqueeze(-1)
            rewards = (torch.rand(arms.shape[:-1], generator=rng) < success[arms.squeeze(-1)]).float()
            batch = _batch(objective, logits, arms, rewards, (chances * success).sum(-1))
            batch, state = objective.prepare(batch, state)
            denominator = objective.denominator(batch.response_mask)
        for _ in range(2):
            optimizer.zero_grad()
            current = dataclasses.replace(batch, **_current(logits, arms))
            policy_loss(objective, current, denominator, check=False).loss.sum().backward()
            optimizer.step()
    best = logits.detach().softmax(-1)[..., 2]  # only read
    holds("after 60 steps the best arm must have probability > 0.6", best > 0.6, best)


def _batch(objective: Objective, logits: Tensor, arms: Tensor, rewards: Tensor, value: Tensor) -> Batch:
    """One rollout batch with every input: an arm is an answer, and nothing is known but the arms' mean success."""
    ids = torch.arange(PROMPTS).repeat_interleave(SIZE)
    current = _current(logits, arms)
    taken = current["log_probs"]
    return Batch(
        **current,
        old_log_probs=taken,
        response_mask=torch.ones_like(arms, dtype=torch.bool),
        advantages=objective.advantage(rewards, ids),
        group=group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids.expand(rewards.shape),
        tokens=arms,
        ref_log_probs=torch.full_like(taken, -torch.tensor(ARMS).log().item()),
        rollout_log_probs=taken,
        values=value[:, None, None].expand_as(taken),
        turns=torch.zeros_like(arms),
        clusters=arms.squeeze(-1),
        components=torch.stack([rewards, rewards], -1),
        top_tokens=torch.arange(ARMS).expand(*arms.shape, ARMS),
        influence=-taken,
    )


def _current(logits: Tensor, arms: Tensor) -> dict[str, Any]:
    full = logits.log_softmax(-1).expand(RUNS, PROMPTS * SIZE, ARMS)
    whole = full.unsqueeze(-2)
    return {
        "log_probs": full.gather(-1, arms),
        "entropy": -(whole.exp() * whole).sum(-1),
        "full_log_probs": whole,
        "top_log_probs": whole,
    }
