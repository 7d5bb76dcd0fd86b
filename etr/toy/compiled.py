"""Optional compilation of the toy trainer's steps: the same functions, several times faster after some seconds."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from inspect import signature
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])
# Else all functions of a process share one small budget of compilations; older releases of torch have no other way.
OWN_BUDGET: dict[str, Any] = (
    {"isolate_recompiles": True} if "isolate_recompiles" in signature(torch.compile).parameters else {}
)


def compiled(function: F) -> F:
    """`function` compiled by torch; where that fails (no C++ compiler, an operation it cannot trace) the plain one.

    The failure is told once, as a warning with its reason, and changes nothing but the speed.
    """
    chosen: list[Callable[..., Any]] = []

    def run(*args: Any) -> Any:
        if chosen:
            return chosen[0](*args)
        try:
            fast = torch.compile(function, dynamic=False, fullgraph=True, **OWN_BUDGET)
            result = fast(*args)
            chosen.append(fast)
        except Exception as error:  # whatever a compiler raises: the plain function is always right
            result = function(*args)  # raises by itself if the arguments were at fault
            reason = str(error.__cause__ or error).strip().partition("\n")[0]
            warnings.warn(f"could not compile, goes on uncompiled: {reason}", stacklevel=2)
            chosen.append(function)
        return result

    return run  # type: ignore[return-value]
