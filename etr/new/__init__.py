"""`etr new`: a package of one's own, made from templates, that brings what it defines as a plugin (`etr.plugins`)."""

from __future__ import annotations

import importlib
import importlib.util
import keyword
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from etr import plugins
from etr._version import __version__
from etr.errors import InputError

Kind = Literal["objective", "environment", "task", "engine"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONGEST = 40  # characters of a name; the lines of the templates have room for them
TEMPLATES = Path(__file__).parent / "template"
COMMON = {  # template -> file of the package
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "gitignore": ".gitignore",
    "init.py": "src/{name}/__init__.py",
}


def create(name: str, parent: Path, kinds: Sequence[Kind] = ("objective",)) -> Path:
    """Make the package `name` in a new folder of `parent`, a module and its tests for each kind; returns the folder.

    The folder is there as a whole or not at all. Raises InputError for a name that no package, or nothing registered,
    can have, for a folder that exists, and for a parent that cannot be written to.
    """
    _check_name(name)
    folder, names = parent / name, names_in(name)
    if folder.exists() or folder.is_symlink():
        raise InputError(f"'{folder}' exists already; choose another name, or another folder by --at")
    if not parent.is_dir():
        raise InputError(f"there is no folder '{parent}' to make '{name}' in; create it, or give another by --at")
    _check_free(names, kinds)
    files = {path: _render(template, names, kinds) for template, path in _files(name, kinds).items()}
    try:
        _write(folder, files)
    except OSError as error:
        raise InputError(f"cannot make '{folder}' ({error.strerror}); choose a folder you may write to") from error
    return folder


def names_in(name: str) -> dict[str, str]:
    """What the things of a package are called: objective, environment, task, engine, and its class and project."""
    hyphened = name.replace("_", "-")
    return {
        "name": name,
        "project": hyphened,
        "class": "".join(part.capitalize() for part in name.split("_")),
        "objective": name,
        "environment": hyphened,
        "task": f"{hyphened}-task",
        "engine": f"{hyphened}-engine",
    }


def _check_name(name: str) -> None:
    usable = name.isidentifier() and name.isascii() and name == name.lower().strip("_") and "__" not in name
    if not usable or keyword.iskeyword(name) or len(name) > LONGEST:
        raise InputError(
            f"'{name}' cannot be the name of a package; take small letters, digits and _, as in my_method, at most "
            f"{LONGEST} of them"
        )


def _check_free(names: dict[str, str], kinds: Sequence[Kind]) -> None:
    """Refuse the name of a module, and what is registered here or by a plugin."""
    for module, _ in plugins.TABLES.values():
        importlib.import_module(module)
    plugins.load()
    for kind in kinds:
        table = plugins.tables()[kind]
        if names[kind] in table:
            raise InputError(plugins.taken(kind, names[kind], table[names[kind]]))
    spec = importlib.util.find_spec(names["name"])
    if spec is not None and spec.origin is not None:  # without an origin it is just some folder in this one
        raise InputError(f"the Python module '{names['name']}' exists ({spec.origin}); choose a name that hides none")


def _files(name: str, kinds: Sequence[Kind]) -> dict[str, str]:
    """Template -> path in the package."""
    own = {f"{kind}.py": f"src/{name}/{kind}.py" for kind in kinds}
    tests = {f"test_{kind}.py": f"tests/test_{name}_{kind}.py" for kind in kinds}
    return {**{template: path.format(name=name) for template, path in COMMON.items()}, **own, **tests}


def _render(template: str, names: dict[str, str], kinds: Sequence[Kind]) -> str:
    import jinja2  # here, because every command imports this module

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, autoescape=False,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    ordered = [kind for kind in KINDS if kind in kinds]
    return environment.get_template(f"{template}.j2").render(**names, kinds=ordered, etr_version=__version__)


def _write(folder: Path, files: dict[str, str]) -> None:
    """Under a name of its own first: a kill or a full disk leaves no half of a package under the real one."""
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        for path, text in files.items():
            (temporary / path).parent.mkdir(parents=True, exist_ok=True)
            (temporary / path).write_text(text, encoding="utf-8")
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
