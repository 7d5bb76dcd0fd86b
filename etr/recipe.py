"""Floor 4: a recipe is what gets trained, compared and promoted: objective, advantage and optimiser settings.

Loaded from an objective's name, a YAML file, or `module:Name`; one loader for the toy and the LLM trainer. A sampler or
a controller will be further fields here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import Tensor

from etr.advantages import get_estimator
from etr.corrections import Correction
from etr.errors import FieldError, InputError, unknown
from etr.objective import Objective
from etr.references import ask_for_class, import_name, objective_from, reference
from etr.registry import find, get, list_objectives

T = TypeVar("T", bound=Any)
METHODS = ("adam", "sgd")
PARTS = ("optimizer", "correction")  # of a recipe, besides its objective


@dataclass(frozen=True)
class OptimizerSettings:
    """How a rollout batch is used. Raises FieldError for values out of range.

    method: "adam" (AdamW where there is weight decay) or "sgd" (no momentum: the step is lr times the gradient);
    lr: learning rate, None for the trainer's own default (scales differ between a table and an LLM);
    updates: optimiser steps on each rollout batch, K; the region matters only from the second on;
    micro_batches: parts of the batch whose gradients are added before each step, None for the trainer's own default;
    max_grad_norm: gradient clipping (LLM trainer), None for none; weight_decay: AdamW's (LLM trainer).
    """

    method: str = "adam"
    lr: float | None = None
    updates: int = 4
    micro_batches: int | None = None
    max_grad_norm: float | None = 1.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise FieldError(unknown("optimizer.method", str(self.method), METHODS))
        for name in ("updates", "micro_batches"):
            value = getattr(self, name)
            ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not (ok or (value is None and name == "micro_batches")):
                raise FieldError(f"optimizer.{name} is {value!r}; give a whole number of at least 1")
        for name in ("lr", "max_grad_norm", "weight_decay"):
            value = getattr(self, name)
            ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
            if not (ok or (value is None and name != "weight_decay")):
                raise FieldError(f"optimizer.{name} is {value!r}; give a number of at least 0, such as 1.0e-5")


@dataclass(frozen=True)
class Recipe:
    """An objective with everything that its training needs besides data.

    advantage: a name in `etr.advantages.ESTIMATORS`, or None for the objective's own; correction: weights for what
    another distribution sampled: the LLM trainer's rollout engine, or in a toy a temperature other than 1.
    """

    name: str
    objective: Objective
    advantage: str | None = None
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    correction: Correction = field(default_factory=Correction)

    def __post_init__(self) -> None:
        if self.advantage is not None:
            get_estimator(str(self.advantage))

    def advantages(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        """Rewards `[*R, B]` to advantages `[*R, B]`."""
        if self.advantage is None:
            return self.objective.advantage(rewards, group_ids)
        return get_estimator(self.advantage)(rewards, group_ids)

    def replace(self, overrides: Mapping[str, object]) -> Recipe:
        """The recipe with some fields changed, by plain or dotted name: `{"micro": 0.3, "optimizer.lr": 0.1}`."""
        recipe = self
        for key, value in overrides.items():
            group, _, name = key.rpartition(".")
            if not group and name in _fields(recipe.optimizer) and name not in _fields(recipe.objective):
                group = "optimizer"
            if key == "advantage":
                recipe = _replace(recipe, "recipe", {key: value})
            elif group in PARTS:
                recipe = _replace(recipe, "recipe", {group: _replace(getattr(recipe, group), group, {name: value})})
            elif group in ("", "objective"):
                kind = f"objective '{self.objective.name}'"
                recipe = dataclasses.replace(recipe, objective=_replace(recipe.objective, kind, {name: value}))
            else:
                raise FieldError(unknown("recipe section", group, ("objective", *PARTS)))
        return recipe

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `load_recipe` reads them from YAML."""
        return {
            "name": self.name,
            "objective": {"name": reference(self.objective), **dataclasses.asdict(self.objective)},
            "advantage": self.advantage,
            **{part: dataclasses.asdict(getattr(self, part)) for part in PARTS},
        }


def load_recipe(source: str | os.PathLike[str], overrides: Mapping[str, object] | None = None) -> Recipe:
    """A recipe from an objective's name, a `.yaml` file, or `module:Name` of an Objective class, object or Recipe.

    Raises InputError naming the nearest valid name, the missing file, or the wrong key.
    """
    text = os.fspath(source)
    if text.endswith((".yaml", ".yml")):
        recipe = recipe_from_dict(_read_yaml(Path(text)), default_name=Path(text).stem, where=text)
    elif ":" in text:
        recipe = _from_module(text)
    elif find(text) is not None or text in list_objectives():  # listing loads plugins
        recipe = Recipe(text, get(text))
    elif text.endswith(".py"):
        ask_for_class(text)
    else:
        hint = "; or give a .yaml file, module:Class or path/to/file.py:Class"
        raise InputError(unknown("recipe", text, list_objectives()) + hint)
    return recipe.replace(overrides or {})


def recipe_from_dict(data: Mapping[str, Any], default_name: str, where: str) -> Recipe:
    """The recipe that a mapping describes; `where` names its source in error messages."""
    try:
        valid = [f.name for f in dataclasses.fields(Recipe)]
        for key in data:
            if key not in valid:
                raise FieldError(unknown("key", str(key), valid))
        if "objective" not in data:
            raise FieldError("the key 'objective' is missing; add for example `objective: etr`")
        spec = data["objective"]
        fields = {"name": spec} if isinstance(spec, str) else dict(_mapping("objective", spec))
        name = fields.pop("name", None)
        if not isinstance(name, str):
            raise FieldError("'objective' has no name; add for example `name: etr` to its fields")
        objective = objective_from(name, fields)
        recipe = Recipe(str(data.get("name") or default_name), objective, data.get("advantage"))
        parts = {key: _replace(getattr(recipe, key), key, _mapping(key, data.get(key) or {})) for key in PARTS}
        return dataclasses.replace(recipe, **parts)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def _mapping(name: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise FieldError(f"'{name}' is {value!r}; write its fields as `key: value` lines below it")
    return {str(key): item for key, item in value.items()}


def _replace(target: T, kind: str, changes: Mapping[str, object]) -> T:
    for key in changes:
        if key not in _fields(target):
            raise FieldError(unknown(f"field of {kind}:", key, _fields(target)))
    return dataclasses.replace(target, **changes)


def _fields(target: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(target)]


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"recipe file {path} does not exist; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"recipe file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"recipe file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise InputError(f"recipe file {path} holds no settings; start with `objective: etr`")
    return data


def _from_module(text: str) -> Recipe:
    try:
        value = import_name(text)
    except InputError as error:
        raise InputError(f"recipe {error}") from None
    if isinstance(value, Recipe):
        return value
    if isinstance(value, type) and issubclass(value, Objective):
        return Recipe(value.name, value())
    if isinstance(value, Objective):
        return Recipe(text.partition(":")[2], value)  # not its class's name: its fields may differ
    raise InputError(f"recipe {text} has type {type(value).__name__}; give an Objective class or object, or a Recipe")
