"""Several recipes on one environment, on all cores: those that can share a batch do, and each core trains a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from etr.recipe import Recipe
from etr.toy.config import ToyConfig
from etr.toy.recorder import History
from etr.toy.stack import stacked
from etr.toy.train import train
from etr.toy.workers import Task, run_all
from toy_envs.model import ExactModel

RUNS = 128  # in one batch: more are no faster, because their tensors leave the cache
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Job:
    """A recipe to train, alone or stacked, and the numbers of the recipes that it stands for."""

    recipe: Recipe
    numbers: tuple[int, ...]


def train_together(
    recipes: Sequence[Recipe],
    model: ExactModel,
    config: ToyConfig,
    progress: Progress = lambda number, step: None,
    done: Callable[[int, History], None] = lambda number, history: None,
) -> list[History]:
    """What `train` gives for each recipe, as many at a time as there are cores; `progress` gets number and step.

    done: gets number and history of each recipe as soon as it is trained.
    Runs of a seed meet the same random numbers under every recipe. Raises what `train` raises as soon as it does, and
    ends the rest.
    """
    config.check()
    jobs = list(_jobs(recipes, config))
    histories: dict[int, History] = {}

    def task(job: Job) -> Task:
        copies = len(job.numbers)
        return lambda report: train(job.recipe, model, config, report, copies).split(copies)

    def moved(place: int, step: int) -> None:
        for number in jobs[place].numbers:
            progress(number, step)

    def finished(place: int, found: list[History]) -> None:
        for number, history in zip(jobs[place].numbers, found, strict=True):
            histories[number] = history
            done(number, history)

    run_all([task(job) for job in jobs], moved, finished)
    return [histories[number] for number in range(len(recipes))]


def _jobs(recipes: Sequence[Recipe], config: ToyConfig) -> Iterator[Job]:
    """Recipes of one class in batches of up to `RUNS` runs where they can be stacked, the others alone."""
    families: dict[type, list[int]] = {}
    for number, recipe in enumerate(recipes):
        families.setdefault(type(recipe.objective), []).append(number)
    most = max(1, RUNS // config.seeds)
    for numbers in families.values():
        for start in range(0, len(numbers), most):
            block = numbers[start : start + most]
            together = stacked([recipes[n] for n in block], config.seeds, getattr(torch, config.dtype))
            if together is not None:
                yield Job(together, tuple(block))
            else:
                yield from (Job(recipes[n], (n,)) for n in block)
