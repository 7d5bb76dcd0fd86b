"""Which source files determine a toy run: digests of this project's own, and of an objective that lies elsewhere."""

from __future__ import annotations

import functools
import hashlib
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import etr
import toy_envs

# What only looks at runs, or trains language models. A test checks that the trainer imports none of it.
ONLOOKERS = ("bench", "cli", "llm", "plots", "report", "reproduce", "stats")
READERS = ("cache.py", "compare.py", "measures.py", "sources.py", "sweep.py", "tables.py")  # in etr/toy


def house_files() -> list[Path]:
    """Files of `etr` and `toy_envs` on which the result of a toy run can depend."""
    core, toys = (Path(package.__file__ or "").parent for package in (etr, toy_envs))
    kept = [path for path in core.rglob("*.py") if path.relative_to(core).parts[0] not in ONLOOKERS]
    return sorted({*kept, *toys.rglob("*.py")} - {core / "toy" / name for name in READERS})


@functools.cache
def house_digest() -> str:
    """Digest of the contents of `house_files`; their folder does not matter. Read once: the running code is what it was
    at the start."""
    root = Path(etr.__file__).parent.parent
    return _digest([(path.relative_to(root).as_posix(), path.read_bytes()) for path in house_files()])


def own_digest(cls: type) -> str | None:
    """Digest of the files that define a class outside this project, followed through what they use of other files.

    Installed packages are not followed. The digest of a class of `etr` is that of no file; None if a source cannot be
    read, as in a notebook.
    """
    todo = [base.__module__ for base in cls.__mro__ if base is not object and not _of_the_house(base.__module__)]
    if any(_file(name) is None for name in todo):
        return None
    seen: dict[str, bytes] = {}
    while todo:
        name = todo.pop()
        file = _file(name)
        if name not in seen and file is not None and not _of_the_house(name) and not _installed(file):
            seen[name] = file.read_bytes()
            todo += _used(name)
    return _digest(sorted(seen.items()))


def _used(name: str) -> list[str]:
    """Names of the modules whose things a module holds."""
    values = [value for key, value in vars(sys.modules[name]).items() if not key.startswith("__")]
    return [v.__name__ if isinstance(v, ModuleType) else str(getattr(v, "__module__", "")) for v in values]


def _file(name: str) -> Path | None:
    """The source file of a loaded module."""
    file = getattr(sys.modules.get(name), "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def _of_the_house(name: str) -> bool:
    return name.partition(".")[0] in ("etr", "toy_envs")


def _installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    return any(file.is_relative_to(paths[kind]) for kind in ("stdlib", "platstdlib", "purelib", "platlib"))


def _digest(parts: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
