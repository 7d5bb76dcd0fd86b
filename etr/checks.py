"""Floor 1: checks of an objective's own fields, for those whose range is not shared by name (`etr.fields.RANGES`)."""

from __future__ import annotations

from collections.abc import Iterable

from etr.errors import FieldError, unknown


def check_choice(owner: object, name: str, valid: Iterable[str]) -> None:
    """Raise FieldError unless the field `name` of `owner` is one of `valid`."""
    names = list(valid)
    if getattr(owner, name) not in names:
        raise FieldError(unknown(f"{type(owner).__name__}.{name}", str(getattr(owner, name)), names))


def check_range(owner: object, name: str, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise FieldError unless the field `name` of `owner` lies in [low, high], or in (low, high] with `open_low`."""
    value = getattr(owner, name)
    if value > high or value < low or (open_low and value == low):
        least = f"above {low:g}" if open_low else f"from {low:g}"
        raise FieldError(f"{type(owner).__name__}.{name} is {value:g}; give a number {least} to {high:g}")


def check_ranges(owner: object, low: float, high: float, *names: str, open_low: bool = False) -> None:
    """`check_range` for several fields."""
    for name in names:
        check_range(owner, name, low, high, open_low=open_low)
