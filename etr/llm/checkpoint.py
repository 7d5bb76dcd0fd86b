"""Checkpoints: one folder a step, a normal Hugging Face model folder that also holds what training needs to go on.

Weights and optimizer state are safetensors, the rest is JSON; nothing is unpickled. A checkpoint is written into a
hidden folder and appears by one rename, and older ones go only after that: a kill at any moment leaves a usable one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from etr.errors import InputError
from etr.files import read_json, to_json
from etr.llm.models import LanguageModel
from etr.llm.weights import quiet

TRAINER, TENSORS = "trainer.json", "trainer.safetensors"


class Checkpoint(NamedTuple):
    """The last finished step and the tensors of the objective's state, as they were saved."""

    step: int
    tensors: dict[str, Tensor]


def save(
    folder: Path,
    step: int,
    language_model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> Path:
    """Write `folder`/step-<step> and then delete the checkpoints of earlier steps; returns the new one.

    `tensors` is the objective's state. Raises InputError when the checkpoint exists already or cannot be written (full
    disk, no permission).
    """
    target, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    if target.exists():
        raise InputError(f"checkpoint '{target}' exists already; choose another folder")
    try:
        for stale in folder.glob(".step-*.partial"):  # left by a run that was killed
            shutil.rmtree(stale)
        partial.mkdir(parents=True)
        _write(partial, step, language_model, optimizer, tensors)
        _sync(partial)
        partial.replace(target)
        for earlier in _finished(folder):
            if _step(earlier) < step:
                shutil.rmtree(earlier)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"cannot write checkpoint '{target}' ({error}); the previous one is intact: free some space or mend "
            "the permissions, and resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def latest(folder: Path) -> Path | None:
    """The finished checkpoint of the latest step in `folder`, or None."""
    return max(_finished(folder), key=_step, default=None)


def load(path: Path, model: Any, optimizer: torch.optim.Optimizer) -> Checkpoint:
    """Put weights and optimizer state of the checkpoint `path` into `model` and `optimizer`, in place.

    Raises InputError when the checkpoint is damaged, or belongs to another model or optimizer.
    """
    record = read_json(path / TRAINER)
    names = _parameter_names(model, optimizer)
    if record["parameters"] != names:
        raise InputError(f"checkpoint '{path}' belongs to a model with other parameters; resume with its own settings")
    try:
        with quiet():
            saved = type(model).from_pretrained(path, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
        tensors = load_file(path / TENSORS, device=str(model.device))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint '{path}' cannot be read ({reason}); resume from another one") from error
    state = {i: _below(tensors, f"optimizer.{name}.") for i, name in enumerate(names)}
    state = {i: values for i, values in state.items() if values}  # a parameter without a gradient so far has none
    optimizer.load_state_dict({"state": state, "param_groups": record["param_groups"]})
    return Checkpoint(record["step"], _below(tensors, "objective."))


def _write(
    folder: Path,
    step: int,
    language_model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    tensors: Mapping[str, Tensor],
) -> None:
    model = language_model.model
    with quiet():
        model.save_pretrained(folder)  # knows which weights are tied
        language_model.tokenizer.save_pretrained(folder)
    names, state = _parameter_names(model, optimizer), optimizer.state_dict()
    flat = {f"objective.{key}": value for key, value in tensors.items()}
    for index, values in state["state"].items():
        flat |= {f"optimizer.{names[index]}.{key}": torch.as_tensor(value) for key, value in values.items()}
    save_file({key: value.detach().contiguous() for key, value in flat.items()}, folder / TENSORS)
    record = {"step": step, "parameters": names, "param_groups": state["param_groups"]}
    (folder / TRAINER).write_text(to_json(record, indent=2), encoding="utf-8")


def _parameter_names(model: Any, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names in the order in which the optimizer numbers its parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Entries whose key starts with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the rename that declares them whole and the deletion of their forerunner."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _finished(folder: Path) -> list[Path]:
    return [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
