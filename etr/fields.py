"""Floor 1: the numbers of an objective: allowed ranges, and what is said about a value outside."""

from __future__ import annotations

import math

from etr import aggregation
from etr.errors import FieldError, InputError

# Fields with the same name mean the same thing in every objective, so each has one range: (least, most).
RANGES: dict[str, tuple[float, float]] = {
    "eps_low": (0.0, 1.0),  # a ratio is never negative, so the lower bound 1 − ε stays ≥ 0
    "eps_high": (0.0, math.inf),
    "eps_min": (0.0, 1.0),
    "eps_max": (0.0, 1.0),
    "beta": (0.0, math.inf),
    "dual_clip": (1.0, math.inf),
    "micro": (0.0, 1.0),  # beyond these a scale could turn negative
    "surprise": (0.0, 1.0),
    "macro": (0.0, 2.0),
    "length": (1, math.inf),
}


def check_field(owner: str, annotation: str, name: str, value: object) -> None:
    """Raise FieldError unless `value` fits the annotation of the field and lies in its range."""
    optional = "None" in annotation
    if value is None and optional:
        return
    if annotation.startswith(("float", "int")):
        whole = annotation.startswith("int")
        kinds = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
            raise FieldError(f"{owner}.{name} is {value!r}; give a {'whole ' if whole else ''}number")
        low, high = RANGES.get(name, (-math.inf, math.inf))
        if not low <= value <= high:
            raise FieldError(f"{owner}.{name} is {value:g}; give a number from {low:g} to {high:g}")
    elif annotation == "bool" and not isinstance(value, bool):
        raise FieldError(f"{owner}.{name} is {value!r}; give true or false")
    elif name == "aggregation":
        try:
            aggregation.check_mode(str(value))
        except InputError as error:
            raise FieldError(f"{owner}.{name}: {error}") from None
