"""The first micro-batch of a run whose ratios have moved, for the proof that verl computed this loss (`etr replay`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from etr.adapters.verl_names import PREFIX, environment_recipe
from etr.advantages import ESTIMATORS
from etr.batch import Batch, LossOutput
from etr.objective import Objective
from etr.recipe import Recipe
from etr.recorded import largest_move
from etr.recording import ENOUGH, Recording

_RUNNING: dict[str, tuple[Recording, float]] = {}  # file -> what this process records there, and its largest move


def record(config: Any, batch: Batch, out: LossOutput, denominator: Tensor, ranks: int) -> None:
    """Record this micro-batch if the settings ask for it and it shows more than the last one; rank 0 alone does.

    denominator: of the whole step over all ranks; ranks: verl multiplies each rank's loss by their number, because
    gradients are averaged over them. The record is of loss and gradient without that factor. The gradient is the one
    that arrives in verl's own backward pass: whatever verl adds to the loss, or multiplies it with, is in it.
    """
    path = config.policy_loss.record
    if not path or not batch.log_probs.requires_grad or _rank():
        return
    recording, furthest = _RUNNING.get(path) or (_recording(config, path), -1.0)
    moved = largest_move(batch) if recording.active else 0.0
    # A step has many micro-batches, and in the first one all ratios are 1 but for rounding: those show nothing.
    if not recording.active or not (furthest < 0 or moved >= max(ENOUGH, 10 * furthest)):
        return
    loss, region, arrived = out.loss.detach(), out.region, list[Tensor]()

    def seen(gradient: Tensor) -> None:
        if not arrived:  # a metric's gradient, which does not pass through the loss
            return
        recording.settings["loss_factor"] = float(arrived.pop())
        recording.observe(batch, loss / ranks, gradient / ranks, region)
        recording.finish(denominator)
        _RUNNING[path] = recording, moved if bool(gradient.any()) else furthest  # all clipped: that shows little

    if out.loss.requires_grad:
        out.loss.register_hook(arrived.append)
        batch.log_probs.register_hook(seen)
    _RUNNING[path] = recording, furthest


def _recording(config: Any, path: str) -> Recording:
    settings = config.policy_loss
    said = {
        **dict(settings.host),
        **{key: getattr(settings, key) for key in ("binary_rewards", "columns")},
        **{key: float(value) for key, value in config.global_batch_info.items() if value is not None},
    }
    return Recording(Path(path), recipe_of(settings.objective(), str(settings.host["adv_estimator"])), "verl", said)


def _rank() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if distributed else int(os.environ.get("RANK", "0"))


def recipe_of(objective: Objective, adv_estimator: str) -> Recipe:
    """The recipe of a run: that of the environment, or one made of what verl's configuration says."""
    recipe = environment_recipe()
    if recipe is not None and recipe.objective == objective:
        return recipe
    name = adv_estimator.removeprefix(PREFIX)
    return Recipe(objective.name, objective, name if name in ESTIMATORS else None)
