"""The suite: every criterion in turn, and a scorecard of what they found."""

from __future__ import annotations

import math
import platform
import time
import traceback
from datetime import datetime
from typing import Any

import torch

import etr
from etr.errors import InputError
from etr.provenance import hash_of, loss_fields, loss_sources
from etr.recipe import Recipe
from etr.stats import Interval
from etr.toy.cache import Cache
from etr.validate import cost, laws, learning, shape, stability  # noqa: F401  (each adds its criteria)
from etr.validate.base import (
    CRITERIA,
    FULL,
    JUDGED_SEED,
    ORDER,
    QUICK,
    TUNING_SEED,
    Bench,
    Criterion,
    Finding,
    Start,
)
from etr.validate.scorecard import SUITE, Scorecard


def validate(
    recipe: Recipe,
    quick: bool = False,
    start: Start = lambda label, total: lambda step: None,
    cache: Cache | None = None,
) -> tuple[Scorecard, Bench]:
    """Run every criterion on a recipe; also returns the bench with the toy runs behind the learning criteria.

    Equal seeds give equal scorecards, but for the cost and the time. Raises InputError when the source of the objective
    cannot be read; an objective that raises anything else fails the criterion in which it did.
    """
    sources, fields = loss_sources(recipe), loss_fields(recipe)
    sizes = QUICK if quick else FULL
    bench = Bench(recipe, sizes, cache, start)
    began, threads = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(1)  # small tensors; and sums are added in one order
    try:
        criteria = tuple(_record(CRITERIA[name], bench) for name in ORDER)
    finally:
        torch.set_num_threads(threads)
    seeds = {
        "tuning": [TUNING_SEED, sizes.tuning],
        "judged": [JUDGED_SEED, sizes.judged],
        "batches": [0, sizes.batches],
    }
    seconds = round(time.perf_counter() - began, 1)
    scorecard = Scorecard(
        recipe=recipe.as_dict(),
        name=recipe.name,
        criteria=criteria,
        loss_hash=hash_of(sources, fields),
        sources=sources,
        fields=fields,
        suite=SUITE,
        quick=quick,
        versions={"etr": etr.__version__, "torch": str(torch.__version__), "python": platform.python_version()},
        seeds=seeds,
        made={"at": datetime.now().astimezone().isoformat(timespec="seconds"), "seconds": seconds},
    )
    return scorecard, bench


def _record(criterion: Criterion, bench: Bench) -> dict[str, Any]:
    """One criterion's finding as plain values."""
    bar = bench.start(criterion.name, 1)
    try:
        found = criterion.measure(bench, criterion.limit)
    except Exception as error:  # whatever a user's objective does, the other criteria are of use
        found = Finding("fail", _raised(error), used=math.inf)
    bar(1)
    return {
        "name": criterion.name,
        "outcome": found.outcome,
        "required": criterion.required,
        "title": criterion.title,
        "line": criterion.line,
        "text": found.text,
        **_ends(found.value, ("value", "low", "high")),
        **_ends(found.used, ("used", "used_low", "used_high")),
        "failing": criterion.failing,
        "details": [list(row) for row in found.details],
    }


def _ends(value: Interval | float | None, names: tuple[str, str, str]) -> dict[str, float | None]:
    ends = value if isinstance(value, Interval) else (value, None, None)
    return dict(zip(names, ends, strict=True))


def _raised(error: Exception) -> str:
    """What went wrong, and in which line: a sentence for an InputError, else kind, text and place."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError):
        return text
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"it raised {type(error).__name__}: {text} (line {last.lineno} of {last.filename})"
