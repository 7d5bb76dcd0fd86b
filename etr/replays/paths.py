"""The paths of a replay: the functions that a trainer calls in its update, on the recorded batch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from etr.batch import CURRENT, Batch, LossOutput
from etr.errors import InputError, unknown
from etr.loss import policy_loss
from etr.recorded import FILE, Recorded, Replay, batch_of, tensors_of
from etr.recording import with_leaves
from etr.toy.update import Updater
from etr.update import add_gradients


def toy(recorded: Recorded) -> Replay:
    """The toy trainer's loss, with one run in its run dimension."""
    objective, parts = recorded.recipe.objective, recorded.parts
    updater = Updater(recorded.recipe, lambda table: table, parts, objective.needs)
    given, denominator = with_leaves(one_run(recorded.batch)), recorded.denominator.unsqueeze(0)
    batch = given.clean()
    loss = updater.loss_of(batch, denominator)
    (gradient,) = torch.autograd.grad(loss, given.log_probs, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        outs = [policy_loss(objective, batch.rows(rows), denominator, check=False) for rows in parts]
    low, high = (torch.cat(bounds, -2)[0] for bounds in zip(*(out.region for out in outs), strict=True))
    return Replay(loss.detach(), gradient[0], low, high)


def llm(recorded: Recorded) -> Replay:
    """The LLM trainer's `add_gradients`, with the recorded log-probs in the place of a forward pass."""
    batch = with_leaves(recorded.batch)
    leaf = batch.log_probs
    regions: list[tuple[Tensor, Tensor]] = []

    def forward(rows: slice) -> dict[str, Tensor]:
        part = batch.rows(rows)
        return {name: value for name in CURRENT if (value := getattr(part, name)) is not None}

    def watch(part: Batch, out: LossOutput) -> None:
        regions.append((out.region.low.detach(), out.region.high.detach()))  # only compared

    scale = float(recorded.settings.get("scale", 1.0))
    arguments = (recorded.recipe.objective, batch, forward, recorded.denominator, recorded.parts, watch)
    loss = add_gradients(*arguments, scale=scale)
    gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad / scale
    low, high = (torch.cat(bounds) for bounds in zip(*regions, strict=True))
    return Replay(loss, gradient, low, high)


def verl(recorded: Recorded) -> Replay:
    """What verl calls in its actor's update. Raises InputError where verl is not installed or cannot serve it."""
    return _host("verl", recorded)


def trl(recorded: Recorded) -> Replay:
    """What TRL calls in its trainer's step. Raises InputError where TRL is not installed or cannot serve it."""
    return _host("trl", recorded)


PATHS: dict[str, Callable[[Recorded], Replay]] = {"toy": toy, "llm": llm, "verl": verl, "trl": trl}
OURS = ("toy", "llm")


def replay(path: str, recorded: Recorded) -> Replay:
    """The record computed again by the path of that name. Raises InputError for an unknown one, and as it does."""
    if path not in PATHS:
        raise InputError(unknown("path", path, PATHS))
    return PATHS[path](recorded)


def find_record(source: Path) -> Path:
    """The record in the folder of a run, or the file itself. Raises InputError where there is none."""
    file = source / FILE if source.is_dir() else source
    if not file.is_file():
        what = f"'{source}' holds no record of a batch ({FILE})" if source.is_dir() else f"there is no '{source}'"
        raise InputError(f"{what}; give a run of `etr toy`, `etr train` or a promoted folder that has begun training")
    return file


def one_run(batch: Batch) -> Batch:
    """The batch `[B, T]` as the only one of a run dimension, `[1, B, T]`."""
    return batch_of({name: value.unsqueeze(0) for name, value in tensors_of(batch).items()})


def _host(name: str, recorded: Recorded) -> Replay:
    try:
        adapter = importlib.import_module(f"etr.adapters.{name}.replay")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == name:
            raise InputError(f"{name} is not installed") from None
        raise InputError(f"{name} cannot be imported: {error}") from None
    found: Replay = adapter.replay(recorded)
    return found
