"""Settings as a run dimension: recipes that differ in numbers only are trained as one batch, one row of runs for each.

A field that differs becomes a tensor `[R, 1, 1]`, which broadcasts against `[R, B, T]` like any run dimension. That is
right for equations and wrong for a Python branch on the field, so it is tried out first on the batch of the laws.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.laws import random_batch
from etr.loss import policy_loss
from etr.objective import Objective
from etr.recipe import Recipe
from etr.samplers import Sampler


def stacked(recipes: Sequence[Recipe], seeds: int, dtype: torch.dtype = torch.float64) -> Recipe | None:
    """One recipe for `seeds` runs of each of `recipes`, in this order; None where they cannot share a batch."""
    objective = stacked_objective([recipe.objective for recipe in recipes], seeds, dtype)
    first = recipes[0]
    rates = [recipe.optimizer.lr for recipe in recipes]
    settings = [dataclasses.replace(recipe.optimizer, lr=None) for recipe in recipes]
    alike = all(s == settings[0] and r.advantage == first.advantage for s, r in zip(settings, recipes, strict=True))
    if objective is None or not alike or (len(set(rates)) > 1 and None in rates):
        return None
    optimizer = copy.copy(first.optimizer)
    if len(set(rates)) > 1:
        object.__setattr__(optimizer, "lr", _per_run([r for r in rates if r is not None], seeds, dtype))
    recipe = copy.copy(first)
    for name, value in (("objective", objective), ("optimizer", optimizer)):
        object.__setattr__(recipe, name, value)  # the checks of a new one are for single numbers
    return recipe


def stacked_objective(
    objectives: Sequence[Objective], repeats: int, dtype: torch.dtype = torch.float64
) -> Objective | None:
    """The objectives as one with tensors `[len · repeats, 1, 1]` for fields; None where that changes their losses."""
    first = objectives[0]
    columns = {f.name: [getattr(o, f.name, None) for o in objectives] for f in dataclasses.fields(first)}
    differ = {name: values for name, values in columns.items() if any(v != values[0] for v in values)}
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for vs in differ.values() for v in vs)
    if any(type(o) is not type(first) for o in objectives) or not numbers:
        return None
    if not differ:
        return first
    if isinstance(first, Sampler):  # how it samples does not show in the losses that are compared
        return None
    if not _same_losses(objectives, _with(first, differ, 1, torch.float64)):
        return None
    return _with(first, differ, repeats, dtype)


def _with(objective: Objective, fields: dict[str, list[Any]], repeats: int, dtype: torch.dtype) -> Objective:
    changed = copy.copy(objective)
    for name, values in fields.items():
        object.__setattr__(changed, name, _per_run(values, repeats, dtype))  # see `stacked`
    return changed


def _per_run(values: Sequence[float], repeats: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype).repeat_interleave(repeats)[:, None, None]


def _same_losses(objectives: Sequence[Objective], together: Objective) -> bool:
    """Does the stacked objective give every run the loss and the gradient of its own objective, two steps long?"""
    batches = [random_batch(objectives[0], seed=seed) for seed in (0, 1)]
    try:
        runs = _results(together, [_repeated(batch, len(objectives)) for batch in batches])
    except (RuntimeError, TypeError, ValueError):  # "Boolean value of Tensor ... is ambiguous" and the like
        return False
    alone = [_results(o, [_repeated(batch, 1) for batch in batches]) for o in objectives]
    joined = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    return all(a.shape == b.shape and torch.allclose(a, b) for a, b in zip(joined, runs, strict=True))


def _results(objective: Objective, batches: Sequence[Batch]) -> list[Tensor]:
    """Advantages, and after each batch state, loss and gradient of its runs."""
    runs, responses = batches[0].log_probs.shape[:2]
    rewards = torch.linspace(0, 1, responses, dtype=torch.float64).expand(runs, -1)
    found = [objective.advantage(rewards, torch.arange(responses) // 4)]
    state = objective.init_state((runs,), rewards.device)
    for batch in batches:
        batch, state = objective.prepare(batch, state)
        denominator = objective.denominator(batch.response_mask)
        leaf = batch.log_probs.detach().requires_grad_()  # a leaf of its own for the gradient
        loss = policy_loss(objective, dataclasses.replace(batch, log_probs=leaf), denominator).loss
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        found += [*(state[name].double() for name in sorted(state)), loss.detach(), gradient]  # only compared
    return found


def _repeated(batch: Batch, runs: int) -> Batch:
    """The batch `[B, T]` as `runs` equal runs `[runs, B, T]`."""

    def repeat(value: object) -> object:
        return value.expand(runs, *value.shape) if isinstance(value, Tensor) else value

    changes = {f.name: repeat(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    if batch.group is not None:
        changes["group"] = type(batch.group)(*(v.expand(runs, *v.shape) for v in vars(batch.group).values()))
    return Batch(**changes)  # type: ignore[arg-type]
