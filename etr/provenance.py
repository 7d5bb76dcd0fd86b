"""Floor 4: which code makes a recipe's loss, as one hash, so that a scorecard or a promoted run can say what it is of.

    loss_hash = SHA-256(sources that make the loss, resolved fields of objective, advantage and correction)

Sources: the modules of the objective's class, of its bases, of the advantage estimator and `etr.loss`, and whatever of
`etr` they import, anywhere in a file, followed to the end; of other packages and a user's own files, what lies in the
same package or is not installed; the objectives that a user's file holds or looks up by name. What stands above a loss
(trainers, reports, commands) is left out. A source counts as its syntax tree without comments, docstrings and layout:
another wording keeps the hash, another line of code changes it. Where a file lies does not count, and neither does the
version of Python.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from etr.advantages import get_estimator
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import Recipe
from etr.references import installed
from etr.registry import list_objectives, objective_class
from etr.uses import code_digest, file_of, looked_up, package_of, spec_of, uses

# Floors 4 and up, as far as a user's file may import them: they use a loss and make none.
ABOVE = ("adapters", "bench", "cli", "llm", "plots", "promote", "provenance", "recipe", "report", "reproduce", "runs")
ABOVE_TOO = ("files", "references", "systems", "toy", "update", "validate", "board", "environment", "uses")
LATER = ("new", "plan", "recorded", "recording", "replays")
SKIPPED = {f"etr.{name}" for name in (*ABOVE, *ABOVE_TOO, *LATER)}


def loss_hash(recipe: Recipe) -> str:
    """SHA-256, in hexadecimal, of the code and the fields that make the recipe's loss; the optimiser is no part of it.

    Raises InputError as `loss_sources` does.
    """
    return hash_of(loss_sources(recipe), loss_fields(recipe))


def hash_of(sources: Mapping[str, str], fields: Mapping[str, object]) -> str:
    """The hash of what `loss_sources` and `loss_fields` gave."""
    return hashlib.sha256(json.dumps([dict(sources), dict(fields)], sort_keys=True).encode()).hexdigest()


def loss_fields(recipe: Recipe) -> dict[str, object]:
    """The resolved fields of objective, advantage and correction, as plain values; the class by its own name.

    Without the folder of a user's file, which may be copied to another place.
    """
    values = json.loads(json.dumps(recipe.as_dict()))
    objective = {**values["objective"], "name": type(recipe.objective).__qualname__}
    return {"objective": objective, "advantage": values["advantage"], "correction": values["correction"]}


def loss_sources(recipe: Recipe) -> dict[str, str]:
    """Name of each module (of `etr`) or file (of others) that makes the loss -> SHA-256 of its code, in hexadecimal.

    Raises InputError for an objective whose source cannot be read, as one typed into a notebook, or that needs a module
    which cannot be found.
    """
    cls = type(recipe.objective)
    roots = _modules_of(cls)
    for name in roots:
        if file_of(name) is None:
            raise InputError(
                f"the source of objective '{cls.name}' cannot be read ({cls.__qualname__} is defined in '{name}', "
                "which is no file); put the class into a .py file and name it path/to/file.py:Class"
            )
    if recipe.advantage is not None:
        roots.append(get_estimator(recipe.advantage).__module__)
    roots += _classes_in(vars(recipe.objective))
    for base in cls.__mro__:
        roots += _classes_in(vars(base)) if not _of_the_house(base.__module__) else []
    todo, seen = ["etr.loss", *roots], dict[str, Path]()
    while todo:
        name = todo.pop()
        file = file_of(name)
        if name not in seen and file is not None:
            seen[name] = file
            todo += [used for used in _used_by(name, file) if _follows(name, used)]
    return _labelled(seen)


def _labelled(files: dict[str, Path]) -> dict[str, str]:
    """Digests by label; files of one name get a number, in the order of their digests."""
    found: dict[str, str] = {}
    for digest, label in sorted((code_digest(file.read_bytes()), _label(name, file)) for name, file in files.items()):
        taken = sum(other.partition(" ")[0] == label for other in found)
        found[f"{label} ({taken + 1})" if taken else label] = digest
    return dict(sorted(found.items()))


def _label(name: str, file: Path) -> str:
    """A name that is the same wherever the file lies and however it was imported."""
    if _of_the_house(name):
        return name
    return "/".join([*filter(None, package_of(name, file).split(".")), file.name])


def _follows(name: str, used: str) -> bool:
    """Is the module `used`, which the module `name` imports, part of the loss?"""
    if _of_the_house(used):
        return used != "etr" and not any(used == skip or used.startswith(f"{skip}.") for skip in SKIPPED)
    file = file_of(used)
    return file is not None and (used.partition(".")[0] == name.partition(".")[0] or not installed(file))


def _used_by(name: str, file: Path) -> Iterator[str]:
    """Modules that a file leads to. Raises InputError for one that a user's file needs and that cannot be found."""
    for module, needed in uses(name, file):
        if needed and not _of_the_house(name) and spec_of(module) is None and module not in sys.modules:
            raise InputError(
                f"'{file}' imports '{module}', which cannot be found, so the code of the loss is not known; run the "
                "command in the folder that holds it, install it, or put an import that may fail into `try`"
            )
        yield module
    if not _of_the_house(name):
        yield from _reached_by_name(name, file)
        yield from _classes_in(vars(sys.modules[name]) if name in sys.modules else {})


def _reached_by_name(name: str, file: Path) -> Iterator[str]:
    """Modules of the objectives that a file looks up; those of all objectives for a name that is not written there."""
    known = list_objectives()
    for wanted in looked_up(name, file):
        for found in known if wanted is None else {wanted} & {*known}:
            yield from _modules_of(objective_class(found))


def _classes_in(value: object) -> Iterator[str]:
    """Modules of the objectives that are held as values: by a module, by a class, in a field, in a list of them."""
    if isinstance(value, Mapping):
        for held in list(value.values()):
            yield from _classes_in(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _classes_in(held)
    elif isinstance(value, Objective):
        yield from _modules_of(type(value))
        yield from _classes_in(vars(value))
    elif isinstance(value, type) and issubclass(value, Objective):
        yield from _modules_of(value)


def _modules_of(cls: type) -> list[str]:
    """The modules of a class and its bases, but for those of Python itself."""
    named = [base.__module__ for base in cls.__mro__]
    return [name for name in named if name.partition(".")[0] not in sys.stdlib_module_names or name == "__main__"]


def _of_the_house(name: str) -> bool:
    return name.partition(".")[0] == "etr"
