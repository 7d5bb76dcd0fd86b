"""Recorded updates made by hand: the laws' batch, in the precision of an LLM's log-probs, through `add_gradients`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etr.batch import CURRENT, TOKEN_FIELDS, Batch
from etr.groups import group_stats
from etr.laws import random_batch
from etr.laws.base import change_tensors
from etr.loss import policy_loss
from etr.objective import Objective
from etr.recipe import Recipe
from etr.recorded import Recorded, load
from etr.recording import Recording, with_leaves
from etr.update import add_gradients, split


def single(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def prepared_batch(objective: Objective, noise: float = 0.3) -> Batch:
    """The laws' random batch in float32, prepared, with NaN in the padding of every column that has a token in it."""
    batch = random_batch(objective, noise=noise)
    batch = change_tensors(batch, single)
    padding = ~batch.response_mask
    holed: dict[str, Any] = {
        name: value.masked_fill(padding, torch.nan)
        for name in TOKEN_FIELDS
        if (value := getattr(batch, name)) is not None
    }
    return objective.prepare(dataclasses.replace(batch, **holed), objective.init_state((), torch.device("cpu")))[0]


def parts_of(objective: Objective) -> list[slice]:
    return split(16, 1 if objective.undivided == "batch" else 4)


def update(recording: Recording, batch: Batch, scale: float = 1.0) -> Tensor:
    """One update of a policy whose parameters are the batch's log-probs; their gradient."""
    objective = recording.recipe.objective
    values = {name: value for name in CURRENT if (value := getattr(batch, name)) is not None}
    parameters = {name: value.detach().clone().requires_grad_() for name, value in values.items()}

    def forward(rows: slice) -> Mapping[str, Tensor]:
        return {name: value[rows] for name, value in parameters.items()}

    denominator = objective.denominator(batch.response_mask)
    passes, watch = recording.around(forward, scale=scale)
    add_gradients(objective, batch, passes, denominator, parts_of(objective), watch, scale=scale)
    recording.finish(denominator)
    gradient = parameters["log_probs"].grad
    return torch.zeros_like(parameters["log_probs"]) if gradient is None else gradient


def recorded(recipe: Recipe, path: Path, scale: float = 1.0) -> Recorded:
    """A record of one update of that recipe, written and read back."""
    update(Recording(path, recipe, "llm"), prepared_batch(recipe.objective), scale)
    return load(path)


def made_llm_batch(rows: int, width: int) -> Batch:
    """What the LLM trainer's batch holds, with numbers that mean nothing."""
    log_probs = torch.full((rows, width), -1.0)
    whole = torch.zeros(rows, width, dtype=torch.long)
    rewards, ids = torch.arange(rows) % 2 * 1.0, torch.arange(rows) // 4
    return Batch(
        log_probs=log_probs,
        old_log_probs=log_probs - 0.1,
        response_mask=whole == 0,
        advantages=rewards - 0.5,
        group=group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids,
        tokens=whole,
        turns=whole,
        rollout_log_probs=log_probs,
        entropy=log_probs,
        components=rewards[:, None],
    )


def record_of(recipe: Recipe, batch: Batch, path: Path) -> None:
    """The record of one update on that batch in a single micro-batch."""
    recording = Recording(path, recipe, "llm")
    leaves = with_leaves(batch)
    out = policy_loss(recipe.objective, leaves)
    (gradient,) = torch.autograd.grad(out.loss, leaves.log_probs)
    recording.observe(batch, out.loss, gradient, out.region)
    recording.finish(recipe.objective.denominator(batch.response_mask))
