"""Several recipes on one environment, on all cores: those that can share a batch do, and each core trains a batch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
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
    done: Callable[[int, History], None] = lambda number, history: None,
) -> list[History]:
    """What `train` gives for each recipe, as many at a time as there are cores; `progress` gets number and step.

    done: gets number and history of each recipe as soon as it is trained, in the thread of the caller.
    Runs of a seed meet the same random numbers under every recipe. Raises what `train` raises as soon as it does, and
    ends the rest.
    """
    config.check()
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

    histories: dict[int, History] = {}
    with ThreadPoolExecutor(max_workers=cores()) as pool:
        running = {pool.submit(work, job): job for job in _jobs(recipes, config)}
        try:
            while running:
                ended = wait(running, return_when=FIRST_COMPLETED).done
                for result in sorted(ended, key=lambda r: r.exception() is not None):  # what is finished is handed over
                    for number, history in zip(running.pop(result).numbers, result.result(), strict=True):
                        histories[number] = history
                        done(number, history)
        except BaseException:
            stop = True
            with _uninterrupted():
                pool.shutdown(cancel_futures=True)
            raise
    return [histories[number] for number in range(len(recipes))]


def cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """No second Ctrl-C while the workers end: it would leave them running in an interpreter that is going away."""
    if threading.current_thread() is not threading.main_thread():  # only the main one gets signals, and may set them
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


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
