"""Settings of a folder's own file that make the loss, the weights or the optimiser: none of them may be edited."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import yaml

from etr.errors import InputError
from etr.promote.terms import touches


def decided(host: str, path: Path) -> dict[str, str]:
    """Those settings by key, as the file says them; for our own trainer none, since the recipe holds all of them.

    Raises InputError for a file that cannot be read.
    """
    if host == "llm":
        return {}
    reserved: Sequence[str] = import_module(f"etr.promote.{host}").RESERVED
    try:
        found = _overrides(path) if host == "verl" else _arguments(path)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"'{path}' cannot be read as settings of {host} ({reason}); promote the recipe again"
        ) from error
    return {key: value for key, value in found.items() if any(touches(key, section) for section in reserved)}


def changed(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """What differs, one sentence for each key."""
    return [
        f"{key} is {now.get(key, 'not set')} and was {then.get(key, 'not set')}"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
    ]


def _overrides(path: Path) -> dict[str, str]:
    words = shlex.split(path.read_text(encoding="utf-8"), comments=True)
    return dict(word.split("=", 1) for word in words if "=" in word)


def _arguments(path: Path) -> dict[str, str]:
    arguments = yaml.safe_load(path.read_text(encoding="utf-8"))["arguments"]
    return {str(key): str(value) for key, value in arguments.items()}
