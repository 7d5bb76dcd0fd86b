"""Workers of the toy trainer: tasks in processes of their own, which report, fail, and end when they should."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from etr.errors import InputError
from etr.objectives.grpo import GRPO
from etr.recipe import Recipe, load_recipe
from etr.toy import workers
from etr.toy.config import ToyConfig
from etr.toy.together import train_together
from toy_envs import make_model

SHORT = ToyConfig(iterations=4, group_size=8, seeds=3)


@dataclass(frozen=True)
class NeedsHints(GRPO):
    """Which a bandit does not have."""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"hints"})


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etr.toy.workers.cores", lambda: 2)


def test_an_error_of_a_late_recipe_ends_an_early_one(two_cores: None) -> None:
    steps: list[int] = []

    def progress(number: int, step: int) -> None:
        steps.append(step)
        time.sleep(0.01)  # the other one fails meanwhile

    long = dataclasses.replace(SHORT, iterations=200)
    with pytest.raises(InputError, match="right answers"):
        recipes = [load_recipe("grpo"), Recipe("needy", NeedsHints())]
        train_together(recipes, make_model("bandit"), long, progress)
    assert len(steps) < 200 and not multiprocessing.active_children()


def test_an_interruption_ends_all_workers(two_cores: None) -> None:
    def progress(number: int, step: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        long = dataclasses.replace(SHORT, iterations=10_000)
        train_together([load_recipe("grpo"), load_recipe("gspo")], make_model("bandit"), long, progress)
    assert not multiprocessing.active_children()


def test_workers_run_beside_each_other_and_report(two_cores: None) -> None:
    """Three tasks for two workers: every step and every result arrives, from processes that are not this one."""

    def task(name: int) -> workers.Task:
        def work(report: workers.Report) -> tuple[int, int, Tensor]:
            for step in range(3):
                report(step)
            return name, os.getpid(), torch.full((2,), float(name))

        return work

    steps: list[tuple[int, int]] = []
    results: dict[int, Any] = {}
    workers.run_all([task(n) for n in range(3)], lambda n, step: steps.append((n, step)), results.__setitem__)
    assert sorted(steps) == [(n, step) for n in range(3) for step in range(3)]
    assert all(results[n][0] == n and results[n][2].eq(n).all() for n in range(3))
    assert len({pid for _, pid, _ in results.values()} | {os.getpid()}) == 4


def test_a_worker_that_is_killed_is_one_sentence(two_cores: None) -> None:
    def die(report: workers.Report) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(InputError, match=r"a worker process ended with exit code -9.*use fewer --seeds"):
        workers.run_all([die, die], lambda n, step: None, lambda n, result: None)


def test_an_error_that_cannot_be_sent_is_told_by_its_name(two_cores: None) -> None:
    class Local(Exception):
        """Defined in a function, so it cannot be pickled."""

    def fail(report: workers.Report) -> None:
        raise Local("why")

    with pytest.raises(RuntimeError, match="Local: why"):
        workers.run_all([fail, fail], lambda n, step: None, lambda n, result: None)


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 6}, raising=False)
    assert workers.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert workers.cores() == 1
