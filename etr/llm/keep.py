"""Which checkpoints of a run stay: the newest few and the best; and which one a run can continue from.

    checkpoints/step-40  step-60  best -> step-40  best.json

`best.json` is what counts; the link beside it is for people, and is set again at the next checkpoint if a kill came
between the two.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from etr.errors import InputError
from etr.files import atomic_write, read_json, to_json
from etr.llm.manifest import damage

BEST = "best"


class Best(NamedTuple):
    """The step of the best checkpoint and its held-out score."""

    step: int
    value: float


def finished(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first, damaged ones included; half-written ones have other names."""
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(path.name.removeprefix("step-"))


def usable(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest whole checkpoint, or None where there is none at all; damaged newer ones are told and set aside.

    Raises InputError when there are checkpoints and none is whole.
    """
    reasons: list[tuple[Path, str]] = []
    for path in reversed(finished(folder)):
        reason = damage(path)
        if reason is None:
            for place, problem in reasons:
                aside = _free(place.with_name(f"damaged-{place.name}"))
                place.rename(aside)
                say(f"checkpoint '{place}' is damaged ({problem}) and is now called {aside.name}; using {path.name}")
            return path
        reasons.append((path, reason))
    if reasons:
        listed = "; ".join(f"{path.name}: {reason}" for path, reason in reasons)
        raise InputError(f"no checkpoint in '{folder}' is whole ({listed}); start again with --overwrite")
    return None


def read_best(folder: Path) -> Best | None:
    """The best checkpoint so far, if one was marked and is still there."""
    if not (folder / f"{BEST}.json").exists():
        return None
    record = read_json(folder / f"{BEST}.json")
    best = Best(int(record["step"]), float(record["value"]))
    return best if (folder / f"step-{best.step}").is_dir() else None


def mark_best(folder: Path, step: int, value: float) -> None:
    """Remember that the checkpoint of `step` has the best held-out score, `value`."""
    atomic_write(folder / f"{BEST}.json", to_json({"step": step, "value": value}) + "\n")
    set_link(folder)


def set_link(folder: Path) -> None:
    """Let `best` point to what best.json says; a file system without links goes without."""
    best = read_best(folder)
    if best is None:
        return
    link, new = folder / BEST, folder / f".{BEST}.new"
    try:
        new.unlink(missing_ok=True)
        new.symlink_to(f"step-{best.step}", target_is_directory=True)
        new.replace(link)
    except (OSError, NotImplementedError):
        new.unlink(missing_ok=True)


def prune(folder: Path, keep_last: int) -> None:
    """Delete all checkpoints but the newest `keep_last` and the best."""
    best = read_best(folder)
    for path in finished(folder)[:-keep_last]:
        if best is None or step_of(path) != best.step:
            gone = path.with_name(f".{path.name}.partial")  # one rename, so that a kill leaves no half of it
            shutil.rmtree(gone, ignore_errors=True)
            path.rename(gone)
            shutil.rmtree(gone)


def _free(path: Path) -> Path:
    """The path without what is left there from an earlier time."""
    shutil.rmtree(path, ignore_errors=True)
    return path
