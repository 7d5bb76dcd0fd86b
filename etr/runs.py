"""One run is one folder: config.yaml, environment.json, metrics.jsonl, figures/ and more.

Rows are appended as they come and everything else is written in one step, so a run that is killed at any moment leaves
a folder that can be read, reported on and resumed. Rows that a full disk refuses wait in memory for room.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from etr.environment import environment
from etr.errors import InputError
from etr.files import append_line, atomic_write, read_json, to_json

CONFIG, ENVIRONMENT, METRICS = "config.yaml", "environment.json", "metrics.jsonl"

__all__ = ["RunFolder", "atomic_write", "default_out", "is_run", "read_config", "read_metrics", "read_rows"]


class RunFolder:
    """The folder of one run, open for writing; made by `create` or `resume`, closed by `close` or `with`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures = path / "figures"
        self._waiting: list[tuple[str, str]] = []  # file and line, in the order in which they came

    @classmethod
    def create(cls, path: Path, config: Mapping[str, object], *, overwrite: bool = False) -> Self:
        """Start a run in a new or empty folder and record its config (nested plain values) and environment.

        Raises InputError if the folder holds anything, unless that is a run and `overwrite` is set, and if it
        cannot be written.
        """
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        _make_room(path, overwrite)
        run = cls(path)
        run.write_text(CONFIG, text)
        run.write_json(ENVIRONMENT, environment())
        return run

    @classmethod
    def resume(cls, path: Path, step: int) -> Self:
        """Continue a run from `step`: rows of it and of later steps go, as does a row cut off by a kill.

        The environment of the continuation is added to environment.json under "resumed".
        Raises InputError if the folder holds no run or cannot be written.
        """
        if not is_run(path):
            raise InputError(f"'{path}' holds no run to resume; give the folder of one or omit --resume")
        run = cls(path)
        for file in path.glob("*.jsonl"):
            rows = [row for row in read_rows(file) if row["step"] < step]
            run.write_text(file.name, "".join(to_json(row) + "\n" for row in rows))
        record = read_json(path / ENVIRONMENT)
        record.setdefault("resumed", []).append({"step": step, **environment()})
        run.write_json(ENVIRONMENT, record)
        return run

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row to metrics.jsonl, at once; NaN and ±inf are stored as null. See `append` for a full disk."""
        if "step" in metrics:
            raise InputError("a metric may not be called 'step', which numbers the rows; choose another name")
        self.append(METRICS, [{"step": step, **{name: float(value) for name, value in metrics.items()}}])

    def append(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Add lines, each with its "step", to a .jsonl file; those that a full disk refuses wait, with one warning."""
        told = bool(self._waiting)
        self._waiting += [(name, to_json(row)) for row in rows]
        try:
            self.flush()
        except InputError as error:
            if not told:
                warnings.warn(f"{error}; new rows wait in memory", RuntimeWarning, stacklevel=2)

    def flush(self) -> None:
        """Write the lines that wait. Raises InputError when the system still refuses."""
        while self._waiting:
            name, line = self._waiting[0]
            append_line(self.path / name, line)
            del self._waiting[0]

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the run in one step."""
        atomic_write(self.path / name, text)

    def write_json(self, name: str, value: object) -> None:
        """Write plain values as JSON in one step; NaN and ±inf become null."""
        self.write_text(name, to_json(value, indent=2) + "\n")

    def close(self) -> None:
        """Write what still waits; a closed folder stays readable. Raises InputError when the system refuses."""
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except InputError:
            if error is None:  # otherwise what ended the run is the news
                raise


def is_run(path: Path) -> bool:
    """Does the folder hold a run, that is both files which every run starts with?"""
    return (path / CONFIG).is_file() and (path / ENVIRONMENT).is_file()


def read_config(path: Path) -> dict[str, Any]:
    """The config of a run. Raises InputError if it is missing or broken."""
    file = path / CONFIG
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read '{file}' ({error.strerror}); give the folder of a run") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = " ".join(str(error).split())
        raise InputError(f"'{file}' is not valid YAML ({where}); mend the file or repeat the run") from error
    if not isinstance(config, dict):
        raise InputError(f"'{file}' holds no keys and values; mend the file or repeat the run")
    return config


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl in order; null is read as NaN, and a last line cut off by a kill is left out.

    Raises InputError if the file is missing, or broken anywhere else.
    """
    return read_rows(path / METRICS, _metrics)


def read_rows(file: Path, parse: Callable[[dict[str, Any]], dict[str, Any]] = dict) -> list[dict[str, Any]]:
    """Rows of a .jsonl file of a run, each with its "step"; a last line cut off by a kill is left out.

    Raises InputError if the file is missing, or broken anywhere else.
    """
    try:
        *lines, last = file.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read '{file}' ({error.strerror}); give the folder of a run that has steps") from error
    rows = [_row(line, f"'{file}' line {number}", parse) for number, line in enumerate(lines, 1)]
    try:
        return [*rows, _row(last, "", parse)]  # whole but for its line end
    except InputError:
        return rows


def default_out(name: str) -> Path:
    """A folder under runs/ that does not exist yet: runs/<name>-YYYYmmdd-HHMMSS."""
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    first = Path("runs") / f"{slug}-{datetime.now():%Y%m%d-%H%M%S}"
    path, number = first, 2
    while path.exists():
        path, number = Path(f"{first}-{number}"), number + 1
    return path


def _make_room(path: Path, overwrite: bool) -> None:
    """Leave an empty folder with a place for figures, or refuse."""
    try:
        if path.is_dir() and any(path.iterdir()):
            if not is_run(path):  # never delete what is not ours, whatever the flags
                raise InputError(f"'{path}' is not empty and holds no run; choose another --out")
            if not overwrite:
                raise InputError(
                    f"{path} already holds a run; "
                    "choose another --out, continue it with --resume or replace it with --overwrite"
                )
            shutil.rmtree(path.resolve())
        (path / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot use '{path}' for a run ({error.strerror}); choose another --out") from error


def _row(line: bytes, where: str, parse: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    try:
        row = json.loads(line)
        return {"step": int(row.pop("step")), **parse(row)}
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{where} is not a row of the run; mend the file or repeat the run") from error


def _metrics(row: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else float(value) for name, value in row.items()}
