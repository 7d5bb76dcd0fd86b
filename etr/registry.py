"""Floor 2: objectives by name. A new paper is one new file in `etr/objectives/`; nothing else changes.

Other packages bring theirs as plugins (`etr.plugins`), loaded when a name is looked up that is not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from etr import plugins
from etr.errors import FieldError, InputError, unknown
from etr.objective import Objective, Paper

_OBJECTIVES: dict[str, type[Objective]] = {}
T = TypeVar("T", bound=type[Objective])


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make an objective known as `name`.

    Raises InputError when another class has that name or this one has another, and when it is no objective: a dataclass
    made from `Objective` that says its paper and needs no argument.
    """

    def add(cls: T) -> T:
        _check_contract(name, cls)
        if find(cls.name) is cls and cls.name != name:
            raise InputError(f"{cls.__qualname__} is already registered as '{cls.name}'; a class has one name")
        known = _OBJECTIVES.get(name)
        if known is not None and not plugins.same(known, cls):
            raise InputError(plugins.taken("objective", name, known))
        cls.name = name
        _OBJECTIVES[name] = cls
        return cls

    return add


def _check_contract(name: str, cls: object) -> None:
    """Raise InputError for what could not be found by that name, listed, or made without arguments."""
    if not name.isidentifier():
        raise InputError(f"'{name}' cannot be the name of an objective; take letters, digits and underscores")
    if not (isinstance(cls, type) and issubclass(cls, Objective)):
        raise InputError(f"objective '{name}' is {cls!r}; register a class made from etr.Objective")
    if "__dataclass_fields__" not in vars(cls):  # its new fields would silently keep the parent's defaults
        raise InputError(f"{cls.__qualname__} is no dataclass; write @dataclass(frozen=True) below @register")
    absent = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    if absent:
        raise InputError(f"{cls.__qualname__} has no default for {', '.join(absent)}; every field needs one")
    if not isinstance(getattr(cls, "paper", None), Paper):
        raise InputError(f"{cls.__qualname__} has no paper; add paper = etr.Paper('My idea', '', 'reconstructed')")


def list_objectives() -> list[str]:
    """Names of all registered objectives, sorted; plugins are loaded for it."""
    plugins.load()
    return sorted(_OBJECTIVES)


def find(name: str) -> type[Objective] | None:
    """The class registered as `name` so far, or None; loads no plugin."""
    return _OBJECTIVES.get(name)


def objective_class(name: str) -> type[Objective]:
    """The class registered as `name`, here or by a plugin; raises InputError naming the nearest one."""
    if name not in _OBJECTIVES:
        plugins.load()
    if name not in _OBJECTIVES:
        raise InputError(unknown("objective", name, _OBJECTIVES))
    return _OBJECTIVES[name]


def get(name: str, /, **fields: object) -> Objective:
    """The objective `name` with some fields set. Raises FieldError (a TypeError) for an unknown field.

    >>> import etr
    >>> etr.get("grpo", eps_high=0.28).eps_high
    0.28
    """
    cls = objective_class(name)
    valid = [field.name for field in dataclasses.fields(cls)]
    for field in fields:
        if field not in valid:
            raise FieldError(unknown(f"field of objective '{name}':", field, valid))
    return cls(**fields)  # type: ignore[arg-type]
