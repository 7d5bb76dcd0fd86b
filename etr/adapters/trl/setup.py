"""What the trainer is built with where the user gives nothing, and the record of its first updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from etr.adapters.trl_settings import arguments
from etr.recipe import Recipe
from etr.recording import Recording


def own_config(recipe: Recipe, model: Any) -> Any:
    """What GRPOTrainer takes where it is given no arguments, with those that follow from the recipe."""
    from trl import GRPOConfig

    name = model if isinstance(model, str) else model.config._name_or_path or "model"
    return GRPOConfig(f"{Path(name).name}-{recipe.name}", **arguments(recipe))


def recording_for(trainer: Any, path: Path) -> Recording:
    """The record of one of the first updates of this run, with TRL's own terms beside it."""
    args = trainer.args
    names = ("steps_per_generation", "gradient_accumulation_steps", "num_iterations", "per_device_train_batch_size")
    settings = {name: getattr(args, name) for name in names}
    path.parent.mkdir(parents=True, exist_ok=True)
    return Recording(path, trainer.recipe, "trl", {**settings, "processes": trainer.accelerator.num_processes})
