"""Grades a batch of answers: in this process where that is safe, in killable ones where it is not."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from etr.errors import InputError
from etr.llm.items import Item
from etr.llm.rewards.combine import TOTAL, Combination
from etr.llm.rewards.pool import Job, Outcome, Pool
from etr.llm.rewards.scores import CHEAP, find

AUTO = "auto"
MOST_WORKERS = 8
Say = Callable[[str], None]


class Gradable(Protocol):
    """What a grader must know of a task."""

    @property
    def scorer(self) -> str:
        """Name of the reward that `auto` stands for."""

    @property
    def grading(self) -> Mapping[str, object]:
        """The task options reward_weights and reward_bounds, where given."""


@dataclass(frozen=True)
class Grades:
    """Rewards of a batch of answers, in their order, and how many could not be graded (their reward is 0).

    `components` has every part of a reward that is a dict, else it is empty.
    """

    rewards: list[float]
    components: dict[str, list[float]]
    timeouts: int
    errors: int


class Grader:
    """Grades answers with the reward of that name, each within `timeout` seconds of wall-clock time.

        with Grader(task, "math", timeout=10.0) as grader:
            grades = grader.grade(items, completions)

    exact, numeric and a task's own comparison of numbers and words are quick and run here; everything else runs in
    `workers` processes. One that is too slow is killed, and its answer counts 0 and as a timeout; one that dies and a
    reward that raises count 0 and as an error. `say` hears of the first of each. Raises InputError when the reward
    cannot be built, and while grading when it returns no number, one out of bounds, or fails on a whole batch.
    """

    def __init__(
        self,
        task: Gradable,
        reward: str = AUTO,
        timeout: float = 10.0,
        workers: int | None = None,
        say: Say | None = None,
    ) -> None:
        if not timeout > 0:
            raise InputError(f"reward_timeout is {timeout}; give a positive number of seconds")
        self.spec = task.scorer if reward == AUTO else reward
        self.timeout = timeout
        self.combination = Combination.from_options(task.grading)
        self._say: Say = warnings.warn if say is None else say
        self._said: set[str] = set()
        count = min(MOST_WORKERS, _cores()) if workers is None else workers
        self._pool = None if self.spec in CHEAP else Pool(self.spec, count, timeout)

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest reward."""
        return self.combination.bounds

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def grade(self, items: Sequence[Item], completions: Sequence[str]) -> Grades:
        """Grade each completion against its item."""
        jobs = list(zip(items, completions, strict=True))
        outcomes = self._outcomes(jobs)
        failed = [outcome for outcome in outcomes if outcome[0] in ("error", "died")]
        if failed and len(failed) == len(jobs):
            raise InputError(
                f"reward '{self.spec}' failed on all {len(jobs)} answers of a batch: {_failure(failed[0])}"
            )
        parts = [self._parts(outcome) for outcome in outcomes]
        names = next((tuple(part) for part in parts if part), (TOTAL,))
        for part in parts:
            if part and part.keys() != set(names):
                raise InputError(
                    f"reward '{self.spec}' gave the components {', '.join(part)} after {', '.join(names)}; give the "
                    "same for every answer"
                )
        return Grades(
            rewards=[self.combination.total(part, f"reward '{self.spec}'") if part else 0.0 for part in parts],
            components={n: [part.get(n, 0.0) for part in parts] for n in names} if names != (TOTAL,) else {},
            timeouts=sum(kind == "timeout" for kind, _ in outcomes),
            errors=len(failed),
        )

    def _outcomes(self, jobs: list[Job]) -> list[Outcome]:
        if self._pool is not None:
            return self._pool.map(jobs)
        score = find(self.spec)
        return [("value", score(item, completion)) for item, completion in jobs]

    def _parts(self, outcome: Outcome) -> dict[str, float]:
        """The components of one answer; none if it could not be graded, which is said once for each kind of failure."""
        kind, value = outcome
        if kind == "wrong":
            raise InputError(
                f"reward '{self.spec}' returned {value}; return a finite number or a dict of them, name: number"
            )
        if kind == "value":
            return value if isinstance(value, dict) else {TOTAL: value}
        if kind not in self._said:
            self._said.add(kind)
            self._say(f"reward '{self.spec}' {_failure(outcome)}; this answer and any like it count 0")
        return {}


def _failure(outcome: Outcome) -> str:
    kind, value = outcome
    if kind == "timeout":
        return f"took longer than {value:g} s for an answer"
    if kind == "died":
        return f"ended its process (exit code {value})"
    return f"raised {value}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
