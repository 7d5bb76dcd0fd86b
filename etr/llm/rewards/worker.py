"""The process that grades: it may hang, crash or exit, and only one answer is lost.

Nothing here needs the trainer. A worker leads a process group of its own, so that killing it also ends whatever a
user's reward has started, and so that Ctrl-C reaches the trainer alone.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any, Literal

from etr.errors import InputError
from etr.llm.items import Item
from etr.llm.rewards.scores import find

Plain = float | dict[str, float]
Reply = tuple[Literal["ready", "refused", "value", "wrong", "error"], Any]


def serve(connection: Connection, spec: str, folder: str, seconds: float) -> None:
    """Build the score that `spec` names, then grade (item, completion) pairs until the other end closes."""
    if sys.platform != "win32":
        os.setsid()
    os.chdir(folder)  # references to a user's file are relative to it
    try:
        score = find(spec)
    except InputError as error:
        connection.send(("refused", str(error)))
        return
    connection.send(("ready", None))
    while True:
        try:
            item, completion = connection.recv()
        except (EOFError, OSError):  # the trainer has closed the pool, or is gone
            return
        _last_resort(2 * seconds + 1)
        connection.send(reply(score, item, completion))
        _last_resort(0)


def reply(score: Any, item: Item, completion: str) -> Reply:
    """What one call of the score comes to: a plain value, a value that is no reward, or where it failed."""
    try:
        value = score(item, completion)
    except BaseException as error:  # a user's reward may raise anything, SystemExit included
        return "error", f"{type(error).__name__}: {' '.join(str(error).split())[:200]} ({_where(error)})"
    found = plain(value)
    return ("wrong", f"{repr(value)[:100]} ({type(value).__name__})") if found is None else ("value", found)


def plain(value: Any) -> Plain | None:
    """A finite float, or a dict of them by name; None for anything else, NaN included. Booleans are 0 and 1."""
    if isinstance(value, Mapping):
        parts = {name: _number(part) for name, part in value.items()}
        good = parts and all(isinstance(name, str) and part is not None for name, part in parts.items())
        return {name: part for name, part in parts.items() if part is not None} if good else None
    return _number(value)


def _number(value: Any) -> float | None:
    if not hasattr(type(value), "__float__"):  # text has none, arrays and tensors of one element have
        return None
    try:
        number = float(value)
    except Exception:  # an array of several elements
        return None
    return number if math.isfinite(number) else None


def _where(error: BaseException) -> str:
    """File and line in which the exception arose; a user's own file is preferred to the libraries it calls."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    own = [
        f for f in frames if f"{os.sep}etr{os.sep}llm{os.sep}" not in f.filename and "site-packages" not in f.filename
    ]
    frame = (own or frames)[-1]
    return f"'{frame.filename}' line {frame.lineno}"


def _last_resort(seconds: float) -> None:
    """Let the system end this process after so long (0: never): a hung worker must not outlive a killed trainer."""
    if sys.platform != "win32":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, seconds)
