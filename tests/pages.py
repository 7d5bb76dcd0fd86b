"""Pages of the documentation followed as a reader does: their files are written, and their commands run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

HOWTO = Path(__file__).parent.parent / "docs" / "howto"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and text of every block of code, in order."""
    return FENCE.findall(page.read_text(encoding="utf-8"))


def follow(page: Path, folder: Path, more: Callable[[str], tuple[str, ...]] = lambda line: ()) -> dict[str, str]:
    """Everything the page shows, done in `folder`: what each command printed, by its line.

    A block that is no command is a file whose name is in its first line; more: further words for a command.
    """
    outputs: dict[str, str] = {}
    for language, body in fences(page):
        if language != "bash":
            (folder / body.splitlines()[0].removeprefix("# ")).write_text(body, encoding="utf-8")
            continue
        for line in body.splitlines():
            outputs[line] = printed(folder, *shlex.split(line, comments=True), *more(line))
    return outputs


def printed(folder: Path, *words: str) -> str:
    """What a command prints in that folder; a command that fails is an error."""
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment.pop("ETR_CACHE", None)
    command = [sys.executable, "-m", *words] if words[0] == "etr" else list(words)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
