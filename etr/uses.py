"""Floor 4: what a source file says: its digest, and which other modules it uses, whether they are loaded yet or not."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
GUARDS = (ast.Try, ast.If)  # an import below one of these may fail without harm
LOOKUPS = ("get", "objective_class", "find", "objective_from")  # of `etr`: they find an objective by its name
_ABSENT = object()


class Use(NamedTuple):
    """A module that a file uses; `needed`: the file fails without it."""

    module: str
    needed: bool


def uses(name: str, file: Path) -> Iterator[Use]:
    """The modules that the file of module `name` imports from, anywhere in it, or takes a thing of by `etr.thing`."""
    tree, package = _tree(file.read_bytes()), package_of(name, file)
    guarded = {id(n) for guard in ast.walk(tree) if isinstance(guard, GUARDS) for n in ast.walk(guard)}
    for node in ast.walk(tree):
        needed = id(node) not in guarded
        if isinstance(node, ast.Import):
            yield from (Use(alias.name, needed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, package)
            yield Use(source, needed)
            yield from (Use(_home(source, alias.name), False) for alias in node.names if alias.name != "*")
    for node, dotted in _dotted_names(tree, package):
        if isinstance(node, ast.Attribute) and dotted.partition(".")[0] == "etr":
            yield Use(_home(*_split(dotted)), False)


def looked_up(name: str, file: Path) -> set[str | None]:
    """Names of the objectives that a file finds by `etr.get` and its like; None for a name that is not written there.

    What `get` is handed over as, or called with a variable, cannot be read: that is None too.
    """
    tree = _tree(file.read_bytes())
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    found: set[str | None] = set()
    for node, dotted in _dotted_names(tree, package_of(name, file)):
        source, last = _split(dotted)
        if source in ("etr", "etr.registry", "etr.references") and last in LOOKUPS:
            first = next(iter(calls[id(node)].args), None) if id(node) in calls else None
            written = isinstance(first, ast.Constant) and isinstance(first.value, str)
            found.add(str(first.value) if written else None)  # type: ignore[union-attr]
    return found


def _dotted_names(tree: ast.Module, package: str) -> Iterator[tuple[ast.expr, str]]:
    """Each name `a` or `a.b.c` of a file, with `a` replaced by what it was imported as."""
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {a.asname or _top(a.name): a.name if a.asname else _top(a.name) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported |= {a.asname or a.name: f"{_source(node, package)}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (dotted := _dotted(node)):
            first, dot, rest = dotted.partition(".")
            if first in imported:
                yield node, imported[first] + dot + rest


def _dotted(node: ast.expr) -> str:
    """`a.b.c` as text, empty for what begins with anything but a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)):
        return f"{before}.{node.attr}"
    return ""


def _source(node: ast.ImportFrom, package: str) -> str:
    """The full name of the module that `from ... import` names."""
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*filter(None, parents), *filter(None, [node.module])])


def _home(source: str, name: str) -> str:
    """The module that `from source import name` is about: a module itself, or where the thing was defined."""
    value = getattr(sys.modules.get(source), name, _ABSENT)
    if value is _ABSENT:
        return f"{source}.{name}" if spec_of(f"{source}.{name}") else source
    if isinstance(value, ModuleType):
        return value.__name__
    return str(getattr(value, "__module__", None) or source)


def spec_of(name: str) -> importlib.machinery.ModuleSpec | None:
    """Where a module would be loaded from, without loading it or what it lies in; None if it is not to be found."""
    module = sys.modules.get(name)
    if module is not None and module.__spec__ is not None:
        return module.__spec__
    above, last = _split(name)
    if not last or not all(part.isidentifier() for part in name.split(".")):
        return None
    if not above:
        return None if module is not None else importlib.util.find_spec(name)
    parent = spec_of(above)
    places = parent.submodule_search_locations if parent is not None else None
    return None if places is None else importlib.machinery.PathFinder.find_spec(name, list(places))


def file_of(name: str) -> Path | None:
    """The source file of a module, loaded or not; None if it has none."""
    module = sys.modules.get(name)
    spec = spec_of(name) if module is None else None
    file = getattr(module, "__file__", None) if spec is None else spec.origin
    return Path(file) if file and file.endswith(".py") and Path(file).is_file() else None


def package_of(name: str, file: Path) -> str:
    """The package that relative imports of a module count from; empty if it lies in none."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__package__", None) or ""
    return name if file.name == "__init__.py" else _split(name)[0]


def _split(dotted: str) -> tuple[str, str]:
    before, _, last = dotted.rpartition(".")
    return before, last


def _top(dotted: str) -> str:
    return dotted.partition(".")[0]


@functools.lru_cache(maxsize=512)
def code_digest(source: bytes) -> str:
    """SHA-256 of what a source says to Python: its syntax tree without docstrings, comments and layout.

    >>> code_digest(b"x = 1  # one") == code_digest(b"x  =  1"), code_digest(b"x = 1") == code_digest(b"x = 2")
    (True, False)
    """
    return hashlib.sha256(json.dumps(_plain(_tree(source))).encode()).hexdigest()


@functools.lru_cache(maxsize=512)
def _tree(source: bytes) -> ast.Module:
    return ast.parse(source)


def _plain(node: object) -> object:
    """A syntax tree as lists. Empty fields are left out: which of them there are differs between versions of Python."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    kept = {key: value for key, value in fields.items() if key not in ("ctx", "kind", "type_comment")}
    return [type(node).__name__, *([key, _plain(value)] for key, value in kept.items() if value not in (None, []))]
