"""A statement of the literature as data: what was published, how it is computed here, and when the two agree."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal, NamedTuple

from torch import Tensor

from etr.errors import InputError

Relation = Literal["=", "<=", ">="]
Verdict = Literal["reproduced", "differs", "not reproduced"]
SIGNS: dict[Relation, str] = {"=": "", "<=": "≤ ", ">=": "≥ "}
Z95 = 1.96  # half-width of a 95 % interval in standard errors


class Target(NamedTuple):
    """One published number or bound; tolerance: half a unit of its last digit, or 95 % half-width of a sample."""

    name: str
    value: float
    tolerance: float = 0.0
    relation: Relation = "="
    text: str = ""  # the number as it was printed, where that says how exact it is


class Measured(NamedTuple):
    """Our number, with the half-width of its 95 % interval where it rests on random draws, else 0."""

    value: float
    half_width: float = 0.0


@dataclass(frozen=True)
class Statement:
    """A published or derived statement and the function that recomputes it, one number per target.

    evidence: `third-party` (the statement was seen, its proof or table was not) or `reconstructed` (the number is this
    project's own, or a constant from memory). note: settings that had to be guessed, and what else to know.
    differs: target name to the reason why our number is another one, where that is known; all others must agree.
    """

    id: str
    section: int
    text: str
    source: str
    evidence: Literal["third-party", "reconstructed"]
    published: tuple[Target, ...]
    run: Callable[[], Sequence[Measured]]
    quick: bool = True
    note: str = ""
    differs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A statement with our numbers, target by target."""

    statement: Statement
    measured: tuple[Measured, ...]
    agrees: tuple[bool, ...]
    verdict: Verdict
    seconds: float


def agrees(target: Target, measured: Measured) -> bool:
    """Do they agree? False for NaN.

    "=": |ours − published| ≤ √(tolerance² + half-width²), the uncertainty of a difference of independent numbers;
    "<=" and ">=": the whole interval lies on the right side of the bound, up to the bound's tolerance.

    >>> agrees(Target("slope", -1.0, 0.05), Measured(-1.03))
    True
    >>> agrees(Target("share", 1.0, relation="<="), Measured(0.99, half_width=0.02))
    False
    """
    if not math.isfinite(measured.half_width):
        return False
    if target.relation == "=":
        return abs(measured.value - target.value) <= math.hypot(target.tolerance, measured.half_width)
    sign = 1 if target.relation == ">=" else -1
    return sign * (measured.value - target.value) - measured.half_width >= -target.tolerance


def check(statement: Statement) -> Result:
    """Recompute a statement and compare; InputError when `run` does not give one number per target."""
    start = time.perf_counter()
    measured = tuple(statement.run())
    seconds = time.perf_counter() - start
    if len(measured) != len(statement.published):
        raise InputError(
            f"statement '{statement.id}' publishes {len(statement.published)} numbers but its run gave "
            f"{len(measured)}; give one number per target"
        )
    held = tuple(agrees(t, m) for t, m in zip(statement.published, measured, strict=True))
    failed = {t.name for t, holds in zip(statement.published, held, strict=True) if not holds}
    known = failed <= set(statement.differs)
    verdict: Verdict = "reproduced" if not failed else "differs" if known else "not reproduced"
    return Result(statement, measured, held, verdict, seconds)


def published(values: Mapping[str, float], tolerance: float = 0.0) -> tuple[Target, ...]:
    """Targets "=" of one tolerance."""
    return tuple(Target(name, value, tolerance) for name, value in values.items())


def printed(values: Mapping[str, str]) -> tuple[Target, ...]:
    """Targets "=" from numbers as they were printed, uncertain by half a unit of their last digit.

    >>> printed({"gap": "1.67e-5"})
    (Target(name='gap', value=1.67e-05, tolerance=5e-08, relation='=', text='1.67e-5'),)
    """
    return tuple(Target(name, float(text), half_unit(text), text=text) for name, text in values.items())


def sampled_share(name: str, share: float, size: int) -> Target:
    """Target "=" from a share that was counted in `size` random cases: uncertain by 1.96·√(p(1−p)/size).

    >>> round(sampled_share("share", 0.52, 2000).tolerance, 4)
    0.0219
    """
    return Target(name, share, Z95 * math.sqrt(share * (1 - share) / size))


def half_unit(text: str) -> float:
    """Half a unit of the last digit of a printed number: 0.005 for "1.10"."""
    return float(f"5e{int(Decimal(text).as_tuple().exponent) - 1}")


def one_of_many(values: Tensor) -> Measured:
    """Mean of repeated searches with 1.96 standard deviations of a single one: is a published one like ours?"""
    return Measured(float(values.mean()), Z95 * float(values.std()))


def mean_with_error(values: Tensor) -> Measured:
    """Mean over independent runs with its 95 % half-width."""
    return Measured(float(values.mean()), Z95 * float(values.std()) / len(values) ** 0.5)


def exactly(*values: float) -> list[Measured]:
    """Numbers without a sampling error."""
    return [Measured(float(value)) for value in values]
