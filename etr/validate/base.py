"""What every criterion is made of: why it exists, where its line lies and why there, and what it measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from etr.recipe import Recipe
from etr.stats import Interval
from etr.toy.cache import Cache
from etr.toy.recorder import History

Outcome = Literal["pass", "fail", "not applicable"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
Start = Callable[[str, int], Callable[[int], None]]
TUNING_SEED, JUDGED_SEED = 100_000, 0  # first seeds: what is tuned on is never judged on


class Sizes(NamedTuple):
    """How much is measured: seeds to tune on and to judge by, iterations of a run, random batches, timed turns."""

    tuning: int
    judged: int
    iterations: int
    batches: int
    turns: int


FULL = Sizes(tuning=16, judged=64, iterations=40, batches=32, turns=15)
QUICK = Sizes(tuning=8, judged=32, iterations=30, batches=8, turns=7)


@dataclass(frozen=True)
class Bench:
    """What a criterion gets: the recipe, how much to measure, finished toy runs, and where to report progress.

    start: `start(label, total)` gives the function that moves a progress bar; histories: what the learning criteria
    leave for the pictures, by environment and arm.
    """

    recipe: Recipe
    sizes: Sizes
    cache: Cache | None = None
    start: Start = lambda label, total: lambda step: None
    histories: dict[str, dict[str, History]] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What one criterion found.

    text: the numbers as a sentence; value: the measured number, with the ends of its 95 % interval where it was
    sampled; used: the share of what is allowed that it takes, more than 1 is a failure (for pictures); details: rows of
    (what, result).
    """

    outcome: Outcome
    text: str
    value: Interval | float | None = None
    used: Interval | float | None = None
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Criterion:
    """One line of a scorecard.

    title: what is asked; why: what goes wrong without it; limit: the number; line: the number in words; because: why
    that number; failing: what a user reads when it fails; required: whether "not applicable" also stands in the way.
    """

    name: str
    title: str
    why: str
    limit: float
    line: str
    because: str
    failing: str
    required: bool
    measure: Callable[[Bench, float], Finding]


CRITERIA: dict[str, Criterion] = {}
ORDER = (
    "laws-kept",
    "sign",
    "region",
    "splits",
    "bfloat16",
    "extreme-ratios",
    "stale-data",
    "learning-bandit",
    "learning-tokens",
    "cost",
)


def criterion(
    title: str, why: str, limit: float, line: str, because: str, failing: str, required: bool = True
) -> Callable[[Callable[[Bench, float], Finding]], Callable[[Bench, float], Finding]]:
    """Decorator: make a criterion of a function (bench, limit) -> Finding, named after it."""

    def add(measure: Callable[[Bench, float], Finding]) -> Callable[[Bench, float], Finding]:
        name = measure.__name__.replace("_", "-")
        CRITERIA[name] = Criterion(name, title, why, limit, line, because, failing, required, measure)
        return measure

    return add


def not_applicable(reason: str) -> Finding:
    """The finding of a criterion that cannot be measured here, with the reason."""
    return Finding("not applicable", reason)


def verdict(ok: bool) -> Outcome:
    """The outcome of a criterion that was measured."""
    return "pass" if ok else "fail"


def scaled(value: Interval, by: float) -> Interval:
    """An interval times a number; a negative one swaps the ends."""
    ends = sorted((value.low * by, value.high * by))
    return Interval(value.estimate * by, *ends)
