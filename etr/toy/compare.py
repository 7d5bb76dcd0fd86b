"""Compare recipes on toy environments: same seeds, same settings, intervals over seeds, no verdict without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from etr import stats
from etr.errors import InputError
from etr.recipe import Recipe
from etr.toy.cache import Cache, train_all
from etr.toy.config import ToyConfig
from etr.toy.measures import LEVEL, MEASURES, check_level, defined, measure
from etr.toy.policies import make_policy
from etr.toy.recorder import History
from etr.toy.rollout import supplies
from etr.toy.tables import Scores, difference_rows, improvement_rows, seed_rows, summary_rows
from etr.update import split
from toy_envs import make_model, resolve
from toy_envs.model import ExactModel

__all__ = ["MEASURES", "Comparison", "check_request", "compare", "curve_rows", "load_env"]

Histories = dict[str, dict[str, History]]  # environment -> recipe -> history


@dataclass(frozen=True)
class Comparison:
    """Histories of every recipe on every environment, with the summary that reports and tables print.

    rows: one per environment, recipe and measure: IQM with a 95 % bootstrap interval, and the number of seeds that have
    the measure; improvement: the probability that a seed of the first recipe beats one of another; differences: the
    first recipe minus another on the same random numbers, with a verdict corrected for the number of comparisons;
    seeds: one per environment, recipe and seed. `env` is "all" for the stratified summary.
    """

    histories: Histories
    rows: list[dict[str, Any]]
    improvement: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    seeds: list[dict[str, Any]]


def compare(
    recipes: Sequence[Recipe],
    envs: Sequence[str],
    config: ToyConfig,
    progress: Callable[[str, str], Callable[[int], None]] = lambda env, recipe: lambda step: None,
    cache: Cache | None = None,
    level: float = LEVEL,
) -> Comparison:
    """Train every recipe on every environment; `progress(env, recipe)` gives the callback of that run.

    level: the score at which entropies are matched. Raises InputError as `check_request` does, before anything is
    trained.
    """
    models = check_request(recipes, envs, config, level)
    names = [recipe.name for recipe in recipes]
    histories: Histories = {}
    for env, model in models.items():
        callbacks = [progress(env, name) for name in names]
        runs = train_all(recipes, model, config, cache, lambda i, step, call=callbacks: call[i](step))  # type: ignore[misc]
        histories[env] = dict(zip(names, runs, strict=True))
    scores: Scores = {name: {env: measure(histories[env][name], models[env], level) for env in envs} for name in names}
    rows = list(seed_rows(scores, range(config.first_seed, config.first_seed + config.seeds), {}))
    return Comparison(histories, summary_rows(scores), improvement_rows(scores), difference_rows(scores), rows)


def check_request(
    recipes: Sequence[Recipe], envs: Sequence[str], config: ToyConfig, level: float
) -> dict[str, ExactModel]:
    """The models of the environments by name, if all recipes can be trained on all of them.

    Raises InputError for unknown environments, one environment under two names, recipes of one name, an unknown policy,
    a level outside (0, 1], settings out of range, fewer than 3 seeds, more micro-batches than responses, and an
    objective that needs what an environment does not have.
    """
    names = [recipe.name for recipe in recipes]
    if not recipes or not envs or len(set(names)) < len(names) or len(set(envs)) < len(envs):
        raise InputError(
            f"a comparison needs environments and recipes of different names, got {list(envs)} and {names}"
        )
    config.check()
    check_seeds(config)
    check_level(level)
    models = {env: load_env(env) for env in envs}
    places: dict[tuple[str, str], str] = {}
    for env, model in models.items():
        if (other := places.setdefault(resolve(env), env)) != env:  # it would count twice in every summary
            raise InputError(f"'{other}' and '{env}' are one environment; name it once")
        make_policy(config.policy, model)
        for recipe in recipes:
            recipe.objective.require(supplies(model), f"the toy trainer in '{env}'")
            split(model.prompts * config.group_size, recipe.optimizer.micro_batches or 1)
    return models


def check_seeds(config: ToyConfig) -> None:
    """Refuse an interval over fewer than 3 seeds."""
    if config.seeds < stats.FEWEST_SEEDS:
        raise InputError(f"seeds is {config.seeds}; an interval over seeds needs at least {stats.FEWEST_SEEDS}")


def curve_rows(histories: Histories) -> Iterator[tuple[int, dict[str, float]]]:
    """One row per measured step: the interquartile mean over seeds of every metric, keyed environment/recipe/metric."""
    keyed = {
        f"{env}/{recipe}": history for env, by_recipe in histories.items() for recipe, history in by_recipe.items()
    }
    steps = next(iter(keyed.values())).steps
    curves = {f"{key}/{name}": c for key, history in keyed.items() for name, c in history.curves.items()}
    for i, step in enumerate(steps):
        yield step, {name: _iqm_of_defined(curve[:, i]) for name, curve in curves.items()}


def _iqm_of_defined(values: Tensor) -> float:
    """IQM of the seeds that have a value (no clip share where no token had an advantage); NaN if none has."""
    values = defined(values)
    return float(stats.iqm(values)) if len(values) else math.nan


def load_env(name: str) -> ExactModel:
    """The exact model of a toy environment by name; raises InputError naming the nearest one."""
    try:
        return make_model(name)
    except ValueError as error:
        raise InputError(str(error)) from None
