"""Floor 2: objectives by name. A new paper is one new file in `etr/objectives/`; nothing else changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from etr.errors import FieldError, InputError, unknown
from etr.objective import Objective

_OBJECTIVES: dict[str, type[Objective]] = {}
T = TypeVar("T", bound=type[Objective])


def register(name: str) -> Callable[[T], T]:
    """Class decorator: make an objective known as `name`.

    Raises InputError when another class has that name, or this one has another name or is no dataclass.
    """

    def add(cls: T) -> T:
        if "__dataclass_fields__" not in vars(cls):  # its new fields would silently keep the parent's defaults
            raise InputError(f"{cls.__qualname__} is no dataclass; write @dataclass(frozen=True) below @register")
        if find(cls.name) is cls and cls.name != name:
            raise InputError(f"{cls.__qualname__} is already registered as '{cls.name}'; a class has one name")
        known = _OBJECTIVES.get(name)
        # Running a notebook cell twice defines the same class again; that is no clash.
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise InputError(
                f"objective '{name}' is already registered by {known.__module__}.{known.__qualname__}; "
                "choose another name"
            )
        cls.name = name
        _OBJECTIVES[name] = cls
        return cls

    return add


def list_objectives() -> list[str]:
    """Names of all registered objectives, sorted."""
    return sorted(_OBJECTIVES)


def find(name: str) -> type[Objective] | None:
    """The class registered as `name`, or None."""
    return _OBJECTIVES.get(name)


def objective_class(name: str) -> type[Objective]:
    """The class registered as `name`; raises InputError naming the nearest one."""
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
