"""An objective's state across steps, in a file of its own inside TRL's checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from etr.errors import InputError
from etr.files import atomic_write
from etr.objective import State
from etr.recipe import Recipe

FILE = "etr_state.safetensors"


def save_state(folder: Path, recipe: Recipe, state: State) -> None:
    """Write the state beside TRL's own files; nothing for an objective without one."""
    from safetensors.torch import save

    if state:
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}  # it never has a graph
        atomic_write(folder / FILE, save(tensors, {"objective": recipe.objective.name}))


def load_state(folder: Path, recipe: Recipe, fresh: State) -> State:
    """The state that was saved in a checkpoint, on the devices of `fresh`.

    Raises InputError when the checkpoint lacks it or was written by another objective.
    """
    from safetensors import safe_open

    if not fresh:
        return fresh
    path = folder / FILE
    if not path.is_file():
        raise InputError(
            f"checkpoint '{folder}' has no {FILE}, the state of objective '{recipe.objective.name}'; resume from one "
            "that ETRGRPOTrainer wrote with this recipe"
        )
    with safe_open(path, framework="pt") as stored:
        wrote = (stored.metadata() or {}).get("objective")
        names = set(stored.keys())
        if wrote != recipe.objective.name or names != set(fresh):
            raise InputError(
                f"'{path}' is the state of objective '{wrote}' with {', '.join(sorted(names))}, not of "
                f"'{recipe.objective.name}'; resume with the recipe of that run"
            )
        found: dict[str, torch.Tensor] = {name: stored.get_tensor(name) for name in names}
    return {name: value.to(fresh[name].device) for name, value in found.items()}
