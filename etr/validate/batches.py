"""Batches on which a recipe's loss is looked at: random ragged ones, and answers of a policy that has moved on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.batch import SHAPES, Batch
from etr.laws import random_batch
from etr.loss import policy_loss, prepared
from etr.objective import Objective
from etr.recipe import Recipe
from etr.toy.policies import make_policy
from etr.toy.rollout import rollout, streams
from etr.toy.update import Updater
from toy_envs.model import ExactModel

GROUP_SIZE = 16
SPREAD = 0.5  # nats; the policy that answers is not uniform


def ragged_batch(recipe: Recipe, seed: int, pieces: int = 1, noise: float = 0.3) -> Batch:
    """Batch `[16, 5·pieces]` of the laws, with advantages and correction of the recipe; lengths from 1 token on."""
    parts = [random_batch(recipe.objective, noise=noise, seed=1000 * seed + i) for i in range(pieces)]
    first = parts[0]
    assert first.rewards is not None and first.group_ids is not None  # a random batch has every input
    joined: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts], 1)
        for name, dims in SHAPES.items()
        if dims[0].startswith("BT") and name != "advantages" and getattr(first, name) is not None
    }
    joined["turns"] = joined["turns"].sort(-1).values  # they only go up
    if pieces > 1:
        lengths = torch.randint(1, 5 * pieces + 1, (16, 1), generator=torch.Generator().manual_seed(seed))
        joined["response_mask"] = torch.arange(5 * pieces) < lengths
    batch = dataclasses.replace(first, **joined, advantages=recipe.advantages(first.rewards, first.group_ids))
    return recipe.correction.apply(batch)


def ready(recipe: Recipe, batch: Batch) -> Batch:
    """The batch with the objective's statistics."""
    return prepared(recipe.objective, batch)


def loss_and_gradient(objective: Objective, batch: Batch, denominator: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Loss `[*R]` and its gradient by the log-probs `[*R, B, T]`, 0 where the loss does not depend on them."""
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf to read the gradient from
    loss = policy_loss(objective, dataclasses.replace(batch, log_probs=leaf), denominator, check=False).loss
    if not loss.requires_grad:
        return loss, torch.zeros_like(leaf)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


class Stale(NamedTuple):
    """Answers of an old policy: `at(distance)` is the batch as the policy sees it that moved so many nats away."""

    at: Callable[[float], Batch]
    denominator: Tensor


def stale_answers(recipe: Recipe, model: ExactModel, runs: int) -> Stale:
    """One prepared rollout batch of a toy environment for `runs` policies, and what later policies make of it.

    Each logit moves by `distance`, up or down at random: what as many equal Adam steps of that total length do at most.
    """
    rows, logits = make_policy("prefix", model)
    generator = torch.Generator().manual_seed(0)
    start = SPREAD * torch.randn(runs, rows, model.vocab_size, generator=generator, dtype=torch.float64)
    direction = 2.0 * torch.randint(0, 2, start.shape, generator=generator).double() - 1
    shape = (model.prompts, GROUP_SIZE, model.horizon + model.noise_size)
    numbers, more = streams(range(runs), shape, torch.float64)
    state = recipe.objective.init_state((runs,), start.device)
    batch, index = rollout(recipe, model, logits(start), next(numbers), next(more), None, state)
    with torch.no_grad():  # statistics of the batch are fixed during an update
        batch = recipe.objective.prepare(batch, state)[0].clean()
    updater = Updater(recipe, logits, [slice(0, model.prompts * GROUP_SIZE)], recipe.objective.needs)
    denominator = recipe.objective.denominator(batch.response_mask)
    return Stale(lambda distance: updater.current(start + distance * direction, batch, index), denominator)
