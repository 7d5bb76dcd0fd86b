"""Floor 4: objectives written down and found again: a name, or a user's own `module:Name` or `path/to/file.py:Name`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from etr.errors import InputError, unknown
from etr.objective import Objective
from etr.registry import find, get

_FILES: dict[str, Path] = {}  # module -> the file that a reference named
_MISTAKES = (ImportError, NameError, TypeError, ValueError, AttributeError)  # of a beginner, when the file is read


def installed(file: Path) -> bool:
    """Is that the source of an installed package or of Python itself? No: somebody's own file, which may be edited."""
    if {"site-packages", "dist-packages"} & set(file.parts):  # by name: environments share those of others
        return True
    return any(file.is_relative_to(sysconfig.get_paths()[kind]) for kind in ("stdlib", "platstdlib"))


def reference(objective: Objective) -> str:
    """What `objective_from` finds the class of `objective` by, also in another process."""
    cls = type(objective)
    if cls.__module__ in _FILES:  # a name registered by a file is known only once that file was read
        return f"{_FILES[cls.__module__]}:{cls.__qualname__}"
    return cls.name if find(cls.name) is cls else f"{cls.__module__}:{cls.__qualname__}"


def objective_from(name: str, fields: Mapping[str, object]) -> Objective:
    """The objective of that reference with some fields set. Raises InputError or FieldError as `get` does."""
    if ":" not in name:
        return get(name, **fields)
    cls = import_name(name)
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise InputError(f"{name} is no Objective class; give the class of an objective")
    return cls(**fields)  # type: ignore[arg-type]


def import_name(text: str) -> object:
    """The object `module:Name` or `path/to/file.py:Name`; a module is looked for in the current folder first.

    Raises InputError saying what is missing, or which line of the file is not Python or fails.
    """
    source, _, attribute = text.rpartition(":")
    module = _module(source, text)
    if not hasattr(module, attribute):
        raise InputError(f"{text}: " + unknown("name", attribute, _own(module)))
    found: object = getattr(module, attribute)
    return found


def ask_for_class(path: str) -> NoReturn:
    """Raise InputError for a file given without a name in it, saying which there are."""
    own = ", ".join(_own(_module(path, path))) or "no class"
    raise InputError(f"{path} is a whole file; write {path}:Class; it has {own}")


def _own(module: ModuleType) -> list[str]:
    """Names of what a module defines itself."""
    return [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]


def _module(source: str, text: str) -> ModuleType:
    """The module of a reference's first part; `text` is the whole reference, for messages."""
    try:
        return _from_file(Path(source)) if source.endswith(".py") else _from_path(source)
    except ModuleNotFoundError as error:
        if error.name != source:
            raise InputError(f"{text}: {source} itself needs '{error.name}', which is not installed") from None
        raise InputError(f"{text}: {error}; run the command in the folder that holds {source}.py") from None
    except SyntaxError as error:
        raise InputError(f"{text}: line {error.lineno} of '{error.filename}' is not Python ({error.msg})") from None
    except InputError as error:  # a clash of names, say, when the file registers its class
        raise InputError(f"{text}: {error}") from None
    except _MISTAKES as error:
        where = _last_line(source, error)
        if where is None and isinstance(error, ValueError | TypeError):  # an empty or relative module name
            raise InputError(f"{text}: '{source}' is no module name ({error}); write module:Name") from None
        if where is None:
            raise
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        how = "mend the file" + ("; write @dataclass(frozen=True)" if "non-frozen" in what else "")
        raise InputError(f"{text}: {where} fails ({what}); {how}") from None


def _last_line(source: str, error: BaseException) -> str | None:
    """The line of the source at which an error arose, or None if its code was not running."""
    path = Path(source).resolve() if source.endswith(".py") else _found_by(source)
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == path]
    return f"'{source if source.endswith('.py') else path}' line {lines[-1]}" if lines else None


def _from_path(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module lies in the folder the command is run from
    return importlib.import_module(name)


def _from_file(path: Path) -> ModuleType:
    """The module in a file, read once and named after it; a name that another module has gets a suffix."""
    file = path.resolve()
    if not file.is_file():
        raise InputError(f"there is no file '{path}'; check the path")
    name = path.stem
    if _found_by(name) not in (None, file):  # json.py must not hide the standard library's json
        name = f"{name}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"  # the same in every process
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None  # the suffix .py has a loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    _FILES[name] = file
    return sys.modules[name]


def _found_by(name: str) -> Path | None:
    """The file that `import name` leads to, or another mark of what has that name; None if nothing has."""
    if name in sys.modules:
        return Path(getattr(sys.modules[name], "__file__", None) or name).resolve()
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # "a.b" without a package "a"
        return None
    return None if spec is None else Path(spec.origin or name).resolve()
