"""Files that are whole or absent: written beside their place and moved there, so a kill leaves no half."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etr.errors import InputError


def atomic_write(path: Path, data: str | bytes) -> None:
    """Replace the file at `path` by `data` (text as UTF-8) in one step; if that fails the old file stays.

    Raises InputError when the system refuses (full disk, no permission, no such folder).
    """
    content = data.encode() if isinstance(data, str) else data
    # A name of its own in the same folder: os.replace is atomic only within one file system.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write '{path}' ({error.strerror}); free some space or choose a folder you may write to"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: Path, line: str) -> None:
    """Add one line of text; on failure the file is cut back to the lines it had. Raises InputError."""
    data = line.encode() + b"\n"
    try:
        with path.open("ab", buffering=0) as stream:
            start = stream.seek(0, os.SEEK_END)
            try:
                while data:  # an unbuffered write may take only a part, as on a disk that is almost full
                    data = data[stream.write(data) :]
            except OSError:
                stream.truncate(start)
                raise
    except OSError as error:
        raise InputError(
            f"cannot write '{path}' ({error.strerror}); its earlier rows are intact: "
            "free some space, and continue with --resume if the run has stopped"
        ) from error


def to_json(value: object, indent: int | None = None) -> str:
    """JSON text; JSON has no NaN and no infinity, so they become null.

    >>> to_json({"reward": float("nan"), "step": 3})
    '{"reward": null, "step": 3}'
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError if it is missing or broken."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read '{path}' ({error.strerror}); give the folder of a finished run") from error
    except ValueError as error:
        raise InputError(f"'{path}' is not valid JSON ({error}); mend the file or repeat the run") from error


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
