"""Pieces that the report of every kind of run has: pictures from its folder, its config, numbers as text."""

from __future__ import annotations

from pathlib import Path

from etr.errors import InputError
from etr.files import read_json
from etr.report.page import Picture
from etr.runs import CONFIG, ENVIRONMENT


def saved_pictures(run: Path) -> list[Picture]:
    """figures/*.png with their captions, in the order of captions.json, then by name."""
    folder = run / "figures"
    file = folder / "captions.json"
    captions = read_json(file) if file.exists() else {}
    if not isinstance(captions, dict):
        raise InputError(f"'{file}' is not of the form {{file name: caption}}; mend the file or repeat the run")
    order = {name: place for place, name in enumerate(captions)}
    paths = sorted(folder.glob("*.png"), key=lambda path: (order.get(path.name, len(order)), path.name))
    return [Picture(path.read_bytes(), str(captions.get(path.name, "")), path.stem) for path in paths]


def folded(run: Path) -> list[tuple[str, str]]:
    """The config and the environment of a run as folded texts."""
    return [(name, (run / name).read_text(encoding="utf-8")) for name in (CONFIG, ENVIRONMENT)]


def interval(estimate: float, low: float, high: float) -> str:
    """An estimate with its interval.

    >>> interval(0.5, 0.4, 0.61)
    '0.500 [0.400, 0.610]'
    """
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
