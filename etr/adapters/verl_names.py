"""Floor 6: what the names in verl's settings stand for: objectives and advantage estimators. Imported without verl."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from etr.advantages import ESTIMATORS, Estimator, get_estimator
from etr.errors import FieldError, InputError, unknown
from etr.objective import Objective
from etr.recipe import Recipe
from etr.registry import list_objectives, objective_class

PREFIX = "etr/"  # of every name that is registered with verl
RECIPE = (
    "ETR_RECIPE"  # environment variable: the recipe of a promoted folder, for objectives and fields beyond the registry
)
LOSS = "actor_rollout_ref.actor.policy_loss"


def environment_recipe() -> Recipe | None:
    """The recipe of the promoted folder that the environment names, or None. InputError if it cannot be read."""
    path = os.environ.get(RECIPE)
    return _read(path) if path else None


@cache
def _read(path: str) -> Recipe:
    from etr.promote.recipes import read_promoted

    try:
        return read_promoted(path)
    except InputError as error:
        raise InputError(f"{RECIPE}: {error}; every machine of the run must see this file") from None


def estimator(name: str) -> Estimator:
    """The function behind a value of algorithm.adv_estimator. Raises InputError for those that are not ours."""
    own = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or own not in (*ESTIMATORS, *names()):
        raise InputError(unknown("algorithm.adv_estimator", name, [PREFIX + n for n in (*ESTIMATORS, *names())]))
    return get_estimator(own) if own in ESTIMATORS else named(own).advantage


def names() -> list[str]:
    """Names of the objectives that can be registered: the registry's, and that of the recipe in the environment."""
    recipe = environment_recipe()
    return sorted({*list_objectives(), *([] if recipe is None else [recipe.objective.name])})


def named(name: str, fields: Mapping[str, Any] | None = None) -> Objective:
    """The objective of that name, with these fields or else those of the recipe in the environment, or its defaults."""
    recipe = environment_recipe()
    of_recipe = recipe is not None and recipe.objective.name == name
    if of_recipe and fields is None:
        assert recipe is not None
        return recipe.objective
    cls = type(recipe.objective) if of_recipe and recipe is not None else objective_class(name)
    valid = [field.name for field in dataclasses.fields(cls)]
    for key in fields or {}:
        if key not in valid:
            raise FieldError(unknown(f"field of objective '{name}' in {LOSS}.fields:", str(key), valid))
    objective = cls(**(fields or {}))
    if of_recipe and recipe is not None and objective != recipe.objective:
        raise InputError(f"{LOSS}.fields are not those of the recipe in {RECIPE}; take both from one promoted folder")
    return objective
