"""Nested plain values and tensors as JSON and a flat dictionary of tensors: any state can be saved without pickle.

Every container becomes a JSON object with one key that says what it was, so the way back is exact: {"tensor": name},
{"dict": [[key, value], ...]}, {"list": [...]}, {"tuple": [...]}, {"float": "nan"}, {"dtype": "float32"} and, for the
quantised optimiser state of torchao, {"torchao": class, "parts": ..., "context": ...}.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.export import whole

# Classes of torchao.optim and their modules; no other class is ever looked up by a name from a file.
QUANTISED = {"OptimState4bit": "subclass_4bit", "OptimState8bit": "subclass_8bit", "OptimStateFp8": "subclass_fp8"}


def take_apart(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A JSON value and the tensors in it, named by their place below `name`.

    value: dicts with str or int keys, lists, tuples, numbers, strings, None, dtypes and tensors, nested at will.
    Raises InputError for anything else.

    >>> take_apart({0: (1.5, torch.tensor(2))}, "state")
    ({'dict': [[0, {'tuple': [1.5, {'tensor': 'state.0.1'}]}]]}, {'state.0.1': tensor(2)})
    """
    tensors: dict[str, Tensor] = {}
    return _plain(value, name, tensors), tensors


def put_together(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that `take_apart` was given."""
    if not isinstance(plain, dict):
        return plain
    kind, content = next(iter(plain.items()))
    match kind:
        case "tensor":
            return tensors[content]
        case "dict":
            return {key: put_together(value, tensors) for key, value in content}
        case "list":
            return [put_together(value, tensors) for value in content]
        case "tuple":
            return tuple(put_together(value, tensors) for value in content)
        case "float":
            return float(content)
        case "dtype":
            return getattr(torch, content)
        case "torchao" if content in QUANTISED:
            return _quantised(content, *(put_together(plain[part], tensors) for part in ("parts", "context")))
    raise InputError(f"a saved state holds an unknown kind of value '{kind}'; use the version of etr that saved it")


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        return _tensor(value, name, tensors)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping) and all(isinstance(key, str | int) for key in value):
        return {"dict": [[key, _plain(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_plain(item, f"{name}.{place}", tensors) for place, item in enumerate(value)]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise InputError(
        f"{name} is a {type(value).__name__}, which a checkpoint cannot hold; keep plain values and tensors"
    )


def _tensor(value: Tensor, name: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(value).__name__
    if kind in QUANTISED:  # before detach(), which forgets their dtype
        attributes, context = value.__tensor_flatten__()  # type: ignore[attr-defined]  # torch's subclass protocol
        parts = {part: getattr(value, part) for part in attributes}
        return {
            "torchao": kind,
            "parts": _plain(parts, name, tensors),
            "context": _plain(context, f"{name}.context", tensors),
        }
    tensors[name] = whole(value.detach()).contiguous()
    return {"tensor": name}


def _quantised(kind: str, parts: dict[str, Tensor], context: list[Any]) -> Any:
    module = importlib.import_module(f"torchao.optim.{QUANTISED[kind]}")
    return getattr(module, kind).__tensor_unflatten__(parts, context)
