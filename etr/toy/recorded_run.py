"""One short toy run for the record of its first updates (`etr.recorded`), beside the many that are measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from etr.recipe import Recipe
from etr.recorded import FILE
from etr.recording import LOOKS, Recording
from etr.toy.config import ToyConfig
from etr.toy.train import train
from toy_envs.model import ExactModel


def record_run(folder: Path, recipe: Recipe, model: ExactModel, config: ToyConfig) -> None:
    """Train the first seed alone, just long enough, and leave its record in the folder.

    A seed's run is the same whichever other seeds share its batch, so this is the run of the many, also where those
    came out of the cache. It is not compiled: a compiled loss has no log-probs to read a gradient from.
    Raises InputError as `train` does.
    """
    settings = {"seed": config.first_seed, "policy": config.policy, "group_size": config.group_size}
    iterations = min(config.iterations, -(-LOOKS // recipe.optimizer.updates))
    short = dataclasses.replace(config, seeds=1, iterations=iterations, compile=False, observe=False)
    train(recipe, model, short, recording=Recording(folder / FILE, recipe, "toy", settings))
