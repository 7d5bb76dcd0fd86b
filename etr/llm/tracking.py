"""Further places for a run's metrics: TensorBoard, Weights & Biases, trackio. metrics.jsonl is written in any case.

A tracker is a convenience: one that fails is told once and left out from then on, and the run goes on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from etr.board import Board
from etr.errors import InputError, unknown

PROJECT = "etr"
Say = Callable[[str], None]
Values = Mapping[str, float]


class Tracker(Protocol):
    """One place for metrics."""

    def add(self, step: int, values: Values) -> None:
        """One row."""

    def close(self) -> None:
        """Send what is still waiting."""


class Wandb:
    """Weights & Biases; without a key on this machine the run is kept in its folder, for `wandb sync` later."""

    def __init__(self, folder: Path, config: Mapping[str, object], first_step: int, say: Say) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=folder.resolve().name,
            id=run_id(folder),
            dir=folder,
            config=dict(config),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, x_disable_stats=True, disable_git=True),
        )
        # An axis of its own: wandb's step may not go back, and a resumed run repeats some.
        self._run.define_metric("*", step_metric="training step")
        if mode == "offline":
            say(f"wandb is offline; to send the run later: wandb sync {self._run.dir}/..")

    def add(self, step: int, values: Values) -> None:
        self._run.log({"training step": step, **values})

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """trackio, which keeps its runs in a database of this machine."""

    def __init__(self, folder: Path, config: Mapping[str, object], first_step: int, say: Say) -> None:
        import trackio

        self._run: Any = trackio.init(
            PROJECT,
            name=f"{folder.resolve().name}-{run_id(folder)[:6]}",
            config=dict(config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def add(self, step: int, values: Values) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def tensorboard(folder: Path, config: Mapping[str, object], first_step: int, say: Say) -> Tracker:
    """TensorBoard's files in the run folder; after a resume the repeated steps replace the old ones."""
    return Board(folder / "tensorboard", first_step if first_step > 1 else 0)


TRACKERS: dict[str, Callable[[Path, Mapping[str, object], int, Say], Tracker]] = {
    "tensorboard": tensorboard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def check(names: Sequence[str]) -> None:
    """Raise InputError for an unknown tracker, or one whose package is missing, with the command that installs it."""
    for name in names:
        if name not in TRACKERS:
            raise InputError(unknown("tracker", name, TRACKERS))
        if importlib.util.find_spec(name) is None:
            raise InputError(f"track {name} needs a package that is not installed: pip install {name}")


class Trackers:
    """All trackers of a run. names: checked by `check`; config: what the run folder records."""

    def __init__(
        self, names: Sequence[str], folder: Path, config: Mapping[str, object], first_step: int, say: Say
    ) -> None:
        self._say = say
        self._open: dict[str, Tracker] = {}
        for name in names:
            self._try(name, partial(self._start, name, folder, config, first_step))

    def add(self, step: int, values: Values) -> None:
        """One row to each."""
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.add, step, values))

    def close(self) -> None:
        """Send what is still waiting."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, name: str, folder: Path, config: Mapping[str, object], first_step: int) -> None:
        self._open[name] = TRACKERS[name](folder, config, first_step, self._say)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # somebody else's program and network: anything may come out of it
            self._open.pop(name, None)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self._say(f"{name} failed ({reason}) and is left out from now on; metrics.jsonl has every row")


def run_id(folder: Path) -> str:
    """A name for the run that a resume finds again: from its place and the time it was started."""
    started = (folder / "environment.json").read_bytes() if (folder / "environment.json").exists() else b""
    first = started.partition(b'"command"')[0]  # what a resume adds comes later
    return hashlib.blake2b(str(folder.resolve()).encode() + first, digest_size=8).hexdigest()


def _has_key() -> bool:
    """Does wandb know a key, without asking for one?"""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    return netrc.is_file() and "wandb.ai" in netrc.read_text(encoding="utf-8", errors="replace")
