"""Floor 4: one update of a run as it was computed, in a file from which its loss can be computed again anywhere.

`first_batch.safetensors` holds the tensors of a `Batch` under the names of its fields ("group.mean", "columns.NAME"),
then denominator, loss, gradient, low and high; its metadata is one JSON text under "record". No code is in it: the
recipe is named as `Recipe.as_dict` names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.batch import SHAPES, Batch
from etr.errors import InputError, unknown
from etr.files import atomic_write
from etr.groups import GroupStats
from etr.recipe import Recipe, recipe_from_dict

FILE = "first_batch.safetensors"
FORMAT = 1
RECORD = "record"  # key of the metadata
NUMBERS, BOUNDS = ("denominator", "loss"), ("gradient", "low", "high")
REQUIRED = ("log_probs", "old_log_probs", "response_mask", "advantages")
GROUP = ("mean", "var", "size")
WORDS: dict[str, type] = {"parts": list, "host": str, "settings": dict, "loss_hash": str, "versions": dict}


class Replay(NamedTuple):
    """What a path computes from a record: loss, its gradient with respect to the log-probs, bounds of the region.

    loss: one number; gradient, low, high: `[B, T]`.
    """

    loss: Tensor
    gradient: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True, eq=False)
class Recorded:
    """One update as a run computed it.

    batch: prepared, `[B, T]`; its log_probs are the current policy's at that update; denominator: of the whole update;
    parts: rows of each micro-batch; loss: sum over the parts; gradient: of that loss with respect to log_probs,
    without any data-parallel factor; low, high: the region, `[B, T]`; host: who ran it (toy, llm, verl, trl);
    settings: the host's own terms, plain values; loss_hash: of the code that made the loss; versions: of packages, and
    "cpu", whose vector instructions decide the last bits.
    Raises InputError when shapes or parts do not fit together.
    """

    recipe: Recipe
    batch: Batch
    denominator: Tensor
    parts: tuple[slice, ...]
    loss: Tensor
    gradient: Tensor
    low: Tensor
    high: Tensor
    host: str
    settings: Mapping[str, Any]
    loss_hash: str
    versions: Mapping[str, str]

    def __post_init__(self) -> None:
        shape = tuple(self.batch.log_probs.shape)
        if len(shape) != 2:
            raise InputError(f"log_probs have shape {shape}; a record is of one run, [B, T]")
        wanted: dict[str, tuple[int, ...]] = {**dict.fromkeys(BOUNDS, shape), **dict.fromkeys(NUMBERS, ())}
        for name, fits in wanted.items():
            if (found := tuple(getattr(self, name).shape)) != fits:
                raise InputError(f"{name} has shape {found}, but must have {fits}")
        ends = [0, *(part.stop for part in self.parts)]
        joined = all(part.start == end < part.stop for part, end in zip(self.parts, ends, strict=False))
        if not joined or ends[-1] != shape[0]:
            raise InputError(f"the parts {[(p.start, p.stop) for p in self.parts]} do not make up {shape[0]} rows")

    @property
    def moved(self) -> float:
        """The largest |log ratio| of a kept token, in nats; at 0 a region shows nothing."""
        return largest_move(self.batch)


def largest_move(batch: Batch) -> float:
    """max |log π − log π_old| over kept tokens, nats; 0 if no token is kept."""
    gap = (batch.log_probs.detach().double() - batch.old_log_probs.detach().double()).abs()
    return float(torch.where(batch.response_mask, gap, 0.0).max())


def save(path: Path, recorded: Recorded) -> None:
    """Write the record in one step: a kill leaves the whole file, the one before it, or none.

    Raises InputError when the system refuses.
    """
    from safetensors.torch import save as packed

    numbers = {name: getattr(recorded, name) for name in (*NUMBERS, *BOUNDS)}
    # Copies: tensors that share memory, as log_probs and old_log_probs may, cannot be stored as they are.
    tensors = {name: apart(value) for name, value in (tensors_of(recorded.batch) | numbers).items()}
    about = {
        "format": FORMAT,
        "recipe": recorded.recipe.as_dict(),
        "parts": [[part.start, part.stop] for part in recorded.parts],
        **{name: getattr(recorded, name) for name in ("host", "settings", "loss_hash", "versions")},
    }
    atomic_write(path, packed(tensors, metadata={RECORD: json.dumps(about, default=str)}))


def load(path: Path) -> Recorded:
    """The record in that file, on the CPU.

    Raises InputError when the file is missing or damaged, lacks a tensor, has another format, holds shapes that
    disagree, or names a recipe that can no longer be loaded.
    """
    about, tensors = _read(path)
    try:
        values: dict[str, Any] = {name: _taken(tensors, name) for name in (*NUMBERS, *BOUNDS)}
        for name, kind in WORDS.items():
            if not isinstance(about.get(name), kind):
                raise InputError(f"'{name}' is {about.get(name)!r} in its metadata, which is no {kind.__name__}")
            values[name] = about[name]
        values["parts"] = tuple(slice(int(start), int(stop)) for start, stop in values["parts"])
        values["recipe"] = recipe_from_dict(_moved_along(about["recipe"], path.parent), "recorded", "its recipe")
        return Recorded(batch=batch_of(tensors), **values)
    except (TypeError, ValueError) as error:  # InputError is a ValueError
        raise InputError(f"record '{path}' cannot be used: {error}; mend that or repeat the run") from error


def tensors_of(batch: Batch) -> dict[str, Tensor]:
    """Every tensor of a batch by name; those of its group as "group.mean", of its columns as "columns.NAME"."""
    found = {name: value for name in SHAPES if (value := getattr(batch, name)) is not None}
    group = {} if batch.group is None else {f"group.{name}": getattr(batch.group, name) for name in GROUP}
    return found | group | {f"columns.{name}": value for name, value in batch.columns.items()}


def batch_of(tensors: Mapping[str, Tensor]) -> Batch:
    """The batch of such tensors. Raises InputError for a missing or unknown name, and what `Batch` refuses."""
    group_names = [f"group.{name}" for name in GROUP]
    wanted = (*REQUIRED, *(group_names if any(name in tensors for name in group_names) else ()))
    if missing := [name for name in wanted if name not in tensors]:
        raise InputError(f"it lacks the tensors {', '.join(missing)}")
    plain = {name: value for name, value in tensors.items() if "." not in name}
    inner: dict[str, dict[str, Tensor]] = {"group": {}, "columns": {}}
    for name, value in tensors.items():
        owner, dot, field = name.partition(".")
        if (owner not in inner or (owner == "group" and field not in GROUP)) if dot else (name not in SHAPES):
            raise InputError(unknown("tensor", name, (*SHAPES, *group_names)))
        if dot:
            inner[owner][field] = value
    group = inner["group"]
    return Batch(**plain, group=GroupStats(**group) if group else None, columns=inner["columns"])


def apart(value: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing, without graph."""
    return value.detach().to("cpu", copy=True).contiguous()


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {}).get(RECORD, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except FileNotFoundError:
        raise InputError(f"there is no record '{path}'; give the folder of a run that has one") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise InputError(f"'{path}' is no readable safetensors file ({error}); repeat the run") from error
    if not isinstance(about, dict) or not isinstance(about.get("recipe"), dict):
        raise InputError(f"'{path}' is no record of a batch; give a {FILE}")
    if about.get("format") != FORMAT:
        raise InputError(
            f"record '{path}' has format {about.get('format')}, but this etr reads format {FORMAT}; replay it with the "
            "etr that wrote it, or repeat the run"
        )
    return about, tensors


def _taken(tensors: dict[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise InputError(f"it lacks the tensor {name}")
    return tensors.pop(name)


def _moved_along(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The recipe, with its class looked for beside the record where its own file is gone: a folder may be moved."""
    objective = recipe.get("objective")
    name = objective.get("name") if isinstance(objective, dict) else None
    source, colon, cls = str(name).rpartition(":")
    beside = folder / Path(source).name
    if colon and source.endswith(".py") and not Path(source).is_file() and beside.is_file():
        return {**recipe, "objective": {**dict(objective or {}), "name": f"{beside}:{cls}"}}
    return recipe
