"""Errors that a user can mend: one sentence saying what is wrong, where, and how to put it right.

The command line prints these without a traceback; every other exception is a bug in `etr` and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 36  # names; of more than these only the nearest are listed


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and says how to mend it."""


class FieldError(InputError, TypeError):
    """An unknown or badly typed field; also a `TypeError`, as Python raises for unknown arguments."""


def unknown(kind: str, name: str, valid: Iterable[str]) -> str:
    """One sentence for an unknown name, with the nearest valid one first.

    >>> unknown("objective", "grp", ["etr", "grpo"])
    "unknown objective 'grp'; did you mean 'grpo'? Valid: etr, grpo"
    """
    names = sorted(valid)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" did you mean '{near[0]}'?" if near else ""
    shown = names if len(names) <= MANY else sorted(get_close_matches(name, names, n=MANY // 3, cutoff=0.0))
    rest = f", and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
    return f"unknown {kind} '{name}';{hint} Valid: {', '.join(shown)}{rest}"
