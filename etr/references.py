"""Floor 4: objectives written down and found again: a registered name, or `module:Name` of a user's own code."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping

from etr.errors import InputError, unknown
from etr.objective import Objective
from etr.registry import find, get


def reference(objective: Objective) -> str:
    """What `objective_from` finds the class of `objective` by."""
    cls = type(objective)
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
    """The object `module:Name`; the current folder is searched first. Raises InputError saying what is missing."""
    module_name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module lies in the folder the command is run from
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name:
            raise InputError(f"{text}: {module_name} itself needs '{error.name}', which is not installed") from None
        raise InputError(f"{text}: {error}; run the command in the folder that holds {module_name}.py") from None
    except (ValueError, TypeError) as error:  # an empty or relative module name
        raise InputError(f"{text}: '{module_name}' is no module name ({error}); write module:Name") from None
    if not hasattr(module, attribute):
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
        raise InputError(f"{text}: " + unknown("name", attribute, own))
    found: object = getattr(module, attribute)
    return found
