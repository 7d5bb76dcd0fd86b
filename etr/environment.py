"""What a run ran on: enough to say later why two runs differ."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import etr

PACKAGES = ("torch", "numpy", "gymnasium", "transformers")


def environment() -> dict[str, object]:
    """Versions, machine, threads, git commit and command line, as plain values for JSON."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "etr": etr.__version__,
        "git_commit": git_commit(Path(etr.__file__).parent.parent),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
    }


def git_commit(checkout: Path) -> str | None:
    """Commit of a checkout, "-dirty" with uncommitted changes; None if the folder is not the root of one."""
    if not (checkout / ".git").exists():  # an installed package may lie inside somebody else's checkout
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git on this machine, no commit yet
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
