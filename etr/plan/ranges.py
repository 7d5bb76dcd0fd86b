"""An uncertain number: the two ends between which it is believed to lie, and the value to plan with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """`good` is the end at which a run is fast, `bad` the end at which it is slow; either may be the larger."""

    good: float
    mid: float
    bad: float

    def map(self, function: Callable[[float], float]) -> Range:
        """The function of each of the three."""
        return Range(function(self.good), function(self.mid), function(self.bad))

    def scaled(self, factor: float) -> Range:
        """All three times a number."""
        return self.map(lambda value: factor * value)

    def __add__(self, other: Range) -> Range:
        return Range(self.good + other.good, self.mid + other.mid, self.bad + other.bad)

    def over(self, other: Range) -> Range:
        """Quotient: good by good, bad by bad."""
        return Range(self.good / other.good, self.mid / other.mid, self.bad / other.bad)


def at_once(first: Range, second: Range) -> Range:
    """The longer of two things that happen at the same time."""
    return Range(max(first.good, second.good), max(first.mid, second.mid), max(first.bad, second.bad))


def exactly(value: float) -> Range:
    """A number without uncertainty."""
    return Range(value, value, value)
