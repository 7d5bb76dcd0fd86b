"""Toy runs by content: what was trained once, with the same code and settings, is read back instead of trained again.

    key = SHA-256(recipe without its name, model, settings, source files that determine the result, torch version)

One entry is one `.npz` file under `runs/.cache`, or under the folder that the environment variable ETR_CACHE names; it
may be deleted at any time. Entries are written in one step, and one that cannot be read counts as missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from etr.errors import InputError
from etr.files import atomic_write
from etr.recipe import Recipe
from etr.toy.config import ToyConfig
from etr.toy.recorder import History
from etr.toy.sources import house_digest, own_digest
from etr.toy.together import train_together
from toy_envs.model import ExactModel

VARIABLE, DEFAULT = "ETR_CACHE", Path("runs/.cache")
UNREADABLE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile)  # damaged archives raise any


class Cache:
    """A folder of finished runs. Raises InputError if it cannot be made."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(os.environ.get(VARIABLE) or DEFAULT)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot use '{self.folder}' as a cache ({error.strerror}); set {VARIABLE} or add --no-cache"
            ) from error

    def load(self, key: str) -> History | None:
        """The run of that key, or None if there is none that can be read."""
        try:
            with numpy.load(self.folder / f"{key}.npz", allow_pickle=False) as file:
                return _unpack({name: file[name] for name in file.files})
        except UNREADABLE:
            return None

    def store(self, key: str, history: History) -> None:
        """Write a run in one step."""
        buffer = io.BytesIO()
        numpy.savez(buffer, **_pack(history))
        atomic_write(self.folder / f"{key}.npz", buffer.getvalue())


def train_all(
    recipes: Sequence[Recipe],
    model: ExactModel,
    config: ToyConfig,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] = lambda recipe, step: None,
) -> list[History]:
    """Train recipes on one model, or read their runs back; `progress` gets the index of a recipe and its iteration.

    With a cache, runs are stored as soon as they are finished, so that an interrupted sweep goes on where it was.
    """
    keys = [None if cache is None else run_key(recipe, model, config) for recipe in recipes]
    found: dict[int, History] = {}
    for i, key in enumerate(keys):
        history = cache.load(key) if cache is not None and key is not None else None
        if history is not None:
            found[i] = history
            progress(i, config.iterations)
    missing = [i for i in range(len(recipes)) if i not in found]

    def moved(place: int, step: int) -> None:
        progress(missing[place], step)

    def done(place: int, history: History) -> None:
        found[missing[place]] = history
        if cache is not None and (key := keys[missing[place]]) is not None:
            cache.store(key, history)

    if missing:
        train_together([recipes[i] for i in missing], model, config, moved, done)
    return [found[i] for i in range(len(recipes))]


def run_key(recipe: Recipe, model: ExactModel, config: ToyConfig) -> str | None:
    """The name of a run by all that determines it; None for an objective whose source cannot be read (a notebook's)."""
    own = own_digest(recipe)
    if own is None:
        return None
    settings = {key: value for key, value in recipe.as_dict().items() if key != "name"}  # a name changes no result
    parts = [settings, _model_digest(model), dataclasses.asdict(config), house_digest(), own, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _model_digest(model: ExactModel) -> str:
    digest = hashlib.sha256(f"{type(model).__module__}.{type(model).__qualname__}".encode())
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        digest.update(field.name.encode())
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.cpu().contiguous().numpy().tobytes())
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _pack(history: History) -> dict[str, Any]:
    """A history as arrays; "kinds" says what each field was, as JSON text."""
    arrays: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    for field in dataclasses.fields(history):
        value = getattr(history, field.name)
        kinds[field.name] = type(value).__name__
        if isinstance(value, dict):
            arrays |= {f"{field.name}/{name}": part.numpy() for name, part in value.items()}
        elif value is not None:
            arrays[field.name] = value.numpy() if isinstance(value, Tensor) else numpy.asarray(value)
    return arrays | {"kinds": numpy.asarray(json.dumps(kinds))}


def _unpack(arrays: dict[str, Any]) -> History:
    values: dict[str, Any] = {}
    for name, kind in json.loads(str(arrays["kinds"])).items():
        if kind == "dict":
            inner = {key.partition("/")[2]: key for key in arrays if key.startswith(f"{name}/")}
            values[name] = {key: torch.from_numpy(arrays[path]) for key, path in inner.items()}
        elif kind == "NoneType":
            values[name] = None
        else:
            values[name] = arrays[name].tolist() if kind == "list" else torch.from_numpy(arrays[name])
    return History(**values)
