"""Recipes of promoted folders: whatever is a user's own lies in the folder and is named relative to it."""

from __future__ import annotations

import ast
import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import yaml

import etr
from etr.errors import InputError
from etr.files import atomic_write
from etr.objective import Objective
from etr.recipe import Recipe, recipe_from_dict
from etr.references import installed

FILE, RECORD = "recipe.yaml", "promotion.json"


def promoted_reference(folder: Path, text: str) -> str:
    """`my_file.py:Name` in a promoted folder as a reference that holds in every process; anything else as it is."""
    source, colon, name = text.rpartition(":")
    if colon and source.endswith(".py") and (folder / source).is_file():
        return f"{(folder / source).resolve()}:{name}"
    return text


def read_promoted(path: Path | str) -> Recipe:
    """The recipe in the file `path` of a promoted folder, from whatever folder this runs in.

    Raises InputError when the file is missing or broken, as `etr.load_recipe` does.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        fields = dict(data["objective"])
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"'{path}' is no recipe of a promoted folder ({reason}); promote the recipe again") from error
    fields["name"] = promoted_reference(path.parent, str(fields.get("name")))
    return recipe_from_dict({**data, "objective": fields}, default_name=path.parent.name, where=str(path))


def write_recipe(folder: Path, recipe: Recipe) -> dict[str, Path]:
    """Write recipe.yaml with all fields, beside copies of the user's own files. Returns the copies' sources by name.

    Raises InputError when the class lies in a package that is not installed: one file can travel, a folder cannot.
    """
    record, own = recipe.as_dict(), own_files(type(recipe.objective))
    copies: dict[str, Path] = {}
    for source in own:
        if source.name in copies:
            raise InputError(f"two files of the recipe are called '{source.name}'; rename one of them")
        copies[source.name] = source
        atomic_write(folder / source.name, source.read_bytes())
    name = record["objective"]["name"].rpartition(":")[2]
    if _own_file(sys.modules[type(recipe.objective).__module__]) is not None:  # it comes first
        record["objective"]["name"] = f"{own[0].name}:{name}"
    atomic_write(folder / FILE, yaml.safe_dump(record, sort_keys=False, allow_unicode=True))
    return copies


def own_files(cls: type[Objective]) -> list[Path]:
    """Files of the user's own that make this class, its own first: those of its bases, and what they import.

    Raises InputError as `write_recipe` does.
    """
    waiting = [sys.modules[base.__module__] for base in cls.__mro__ if base.__module__ != "builtins"]
    found: list[Path] = []
    while waiting:
        module = waiting.pop(0)
        path = _own_file(module)
        if path is not None and path not in found:
            found.append(path)
            waiting += _imported(path)
    return found


def copy_function(folder: Path, reference: str) -> tuple[str, Path | None]:
    """A reward's reference with the user's file copied into the folder, and that file; what is no file stays."""
    source, colon, name = reference.rpartition(":")
    if not (colon and source.endswith(".py")):
        return reference, None
    path = Path(source)
    try:
        atomic_write(folder / path.name, path.read_bytes())
    except OSError as error:
        raise InputError(f"reward '{reference}' cannot be read ({error.strerror}); check the path") from error
    return f"{path.name}:{name}", path.resolve()


def _own_file(module: ModuleType) -> Path | None:
    """The file of a module that only this user has; None for what is installed."""
    name = module.__name__.partition(".")[0]
    origin = getattr(module, "__file__", None)
    if origin is None or name in sys.stdlib_module_names or name == etr.__name__:
        return None
    path = Path(origin).resolve()
    if installed(path):
        return None
    if "." in module.__name__ or hasattr(module, "__path__"):
        if name in importlib.metadata.packages_distributions():  # installed from where it is developed
            return None
        raise InputError(
            f"'{module.__name__}' lies in a folder of modules that is not installed, and only single files travel; "
            "install it (pip install -e .) or put the objective into one file"
        )
    return path


def _imported(path: Path) -> Iterator[ModuleType]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        yield from (sys.modules[name] for name in names if name in sys.modules)
