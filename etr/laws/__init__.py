"""Laws that every objective keeps, or breaks by declaration (`Objective.exceptions`) with its reason.

`check(objective)` runs them all: the test suite does so for every registered objective, `etr check` for yours.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from etr.laws import gradients, invariances, learning
from etr.laws.base import LAWS, LawBroken, random_batch
from etr.objective import Objective

__all__ = [
    "LAWS",
    "LawBroken",
    "Verdict",
    "check",
    "check_law",
    "gradients",
    "invariances",
    "learning",
    "random_batch",
]


class Verdict(NamedTuple):
    """What came of one law: it holds, is broken, or is broken by declaration (`excepted`); detail: where and why."""

    law: str
    outcome: Literal["holds", "broken", "excepted"]
    detail: str


def check(objective: Objective) -> list[Verdict]:
    """Run every law on `objective`, in order. A declared exception must really break its law, or it is reported too."""
    return [check_law(name, objective) for name in sorted(LAWS, key=lambda name: int(title(name).split(".")[0]))]


def title(name: str) -> str:
    """Number and statement of a law, on one line: "2. A = 0 gives c = 0."."""
    return " ".join((LAWS[name].__doc__ or "").split())


def check_law(name: str, objective: Objective) -> Verdict:
    """Run one law."""
    reason = objective.exceptions.get(name)
    try:
        LAWS[name](objective)
    except LawBroken as broken:
        return Verdict(name, "excepted", reason) if reason else Verdict(name, "broken", str(broken))
    if reason:
        return Verdict(name, "broken", f"declared as an exception ({reason}), but the law holds: remove it")
    return Verdict(name, "holds", "")
