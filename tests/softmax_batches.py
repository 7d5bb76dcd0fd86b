"""Batches of a small softmax policy whose samples occur exactly as often as it says, so that means are expectations."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.objective import Objective, State

HALF = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)  # four samples: 0, 0, 1, 2
SAMPLES = torch.tensor([0, 0, 1, 2])
LN2 = torch.tensor(2.0, dtype=torch.float64).log().item()


def policy_columns(logits: Tensor, tokens: Tensor) -> dict[str, Any]:
    """What the current policy makes anew: logits `[B, T, V]` (or less, it is expanded), tokens `[B, T]`."""
    full = logits.expand(*tokens.shape, logits.shape[-1]).log_softmax(-1)
    taken = full.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return {"log_probs": taken, "full_log_probs": full, "entropy": -(full.exp() * full).sum(-1)}


def softmax_batch(logits: Tensor, tokens: Tensor, rewards: Tensor, **more: Any) -> Batch:
    """A rollout of the policy with these logits: one group, every token kept, reference uniform."""
    columns = policy_columns(logits.detach(), tokens)  # data
    ids = torch.zeros(len(tokens), dtype=torch.long)
    given = {
        "old_log_probs": columns["log_probs"],
        "response_mask": torch.ones(tokens.shape, dtype=torch.bool),
        "advantages": rewards - rewards.mean(),
        "rewards": rewards,
        "group_ids": ids,
        "group": etr.group_stats(rewards, ids),
        "tokens": tokens,
        "ref_log_probs": torch.full_like(columns["log_probs"], 1 / logits.shape[-1]).log(),
        "turns": torch.zeros_like(tokens),
        "values": torch.zeros_like(columns["log_probs"]),
    }
    return Batch(**{**columns, **given, **more})


def prepared(objective: Objective, batch: Batch, state: State | None = None) -> tuple[Batch, State]:
    """`prepare` of a rollout batch, at the start of a run unless a state is given."""
    shape = batch.log_probs.shape[:-2]
    return objective.prepare(batch, objective.init_state(shape, batch.log_probs.device) if state is None else state)


def loss_and_slope(objective: Objective, batch: Batch, logits: Tensor) -> tuple[float, Tensor]:
    """The loss of a prepared batch at other logits, and its gradient with respect to them."""
    assert batch.tokens is not None
    leaf = logits.detach().clone().requires_grad_()  # a fresh leaf to read the gradient from
    current = dataclasses.replace(batch, **policy_columns(leaf, batch.tokens))
    loss = etr.policy_loss(objective, current, objective.denominator(batch.response_mask), check=False).loss
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


def columns_of(objective: Objective, batches: list[Batch], name: str) -> list[float]:
    """A column of one number per run, step by step."""
    state = objective.init_state((), torch.device("cpu"))
    found = []
    for batch in batches:
        ready, state = objective.prepare(batch, state)
        assert ready.columns[name].unique().numel() == 1
        found.append(ready.columns[name].flatten()[0].item())
    return found
