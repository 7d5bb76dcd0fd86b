"""Several recipes on one environment, on all cores: those that can share a batch do, and each core trains a batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from etr.recipe import Recipe
from etr.toy.config import ToyConfig
from etr.toy.recorder import History
from etr.toy.stack import stacked
from etr.toy.train import train
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
) -> list[History]:
    """What `train` gives for each recipe, as many at a time as there are cores; `progress` gets number and step.

    Runs of a seed meet the same random numbers under every recipe. Raises what `train` raises, and ends the rest.
    """
    stop = False

    def work(job: Job) -> list[History]:
        def report(step: int) -> None:
            if stop:
                raise KeyboardInterrupt
            for number in job.numbers:
                progress(number, step)

        torch.set_num_threads(1)  # of this worker: the tensors are small, and the other cores have their own work
        copies = len(job.numbers)
        return train(job.recipe, model, config, report, copies).split(copies)

    jobs = list(_jobs(recipes, config))
    histories: dict[int, History] = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = [pool.submit(work, job) for job in jobs]
        try:
            for job, result in zip(jobs, results, strict=True):
                histories.update(zip(job.numbers, result.result(), strict=True))
        except BaseException:
            stop = True
            pool.shutdown(cancel_futures=True)
            raise
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
