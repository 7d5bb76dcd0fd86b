"""Which source files determine a toy run: digests of this project's own, and of the code of a loss."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import etr
import toy_envs
from etr.errors import InputError
from etr.provenance import hash_of, loss_sources
from etr.recipe import Recipe

# What only looks at runs, or trains language models. A test checks that the trainer imports none of it.
ONLOOKERS = (
    *("adapters", "bench", "cli", "llm", "new", "plan", "plots"),
    *("promote", "replays", "report", "reproduce", "stats", "validate"),
)
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


def own_digest(recipe: Recipe) -> str | None:
    """Digest of the code that makes a recipe's loss, a user's own files among it, as `etr.provenance` finds it.

    None if a source cannot be read, as in a notebook.
    """
    try:
        return hash_of(loss_sources(recipe), {})
    except InputError:
        return None


def _digest(parts: list[tuple[str, bytes]]) -> str:
    digest = hashlib.sha256()
    for name, content in parts:
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
