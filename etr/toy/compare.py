"""Compare recipes on toy environments: same seeds, same settings, intervals over seeds, no verdict without them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from etr import stats
from etr.errors import InputError
from etr.recipe import Recipe
from etr.toy.recorder import History
from etr.toy.train import ToyConfig, train
from toy_envs import make_model
from toy_envs.model import ExactModel

Histories = dict[str, dict[str, History]]  # environment -> recipe -> history
MEASURES: dict[str, str] = {
    "final score": "expected reward after training, 0 = uniform policy, 1 = optimum",
    "learning score": "the same averaged over training: speed counts",
    "final entropy": "nats per token after training",
}


@dataclass(frozen=True)
class Comparison:
    """Histories of every recipe on every environment, with the summary that reports and tables print.

    rows: one per environment, recipe and measure: IQM with a 95 % bootstrap interval; improvement: the probability
    that a seed of the first recipe beats one of another. `env` is "all" for the stratified summary.
    """

    histories: Histories
    rows: list[dict[str, Any]]
    improvement: list[dict[str, Any]]


def compare(
    recipes: Sequence[Recipe],
    envs: Sequence[str],
    config: ToyConfig,
    progress: Callable[[str, str], Callable[[int], None]] = lambda env, recipe: lambda step: None,
) -> Comparison:
    """Train every recipe on every environment; `progress(env, recipe)` gives the callback of that run.

    Raises InputError for unknown environments, recipes of one name, and a single seed, before anything is trained.
    """
    names = [recipe.name for recipe in recipes]
    if not recipes or not envs or len(set(names)) < len(names):
        raise InputError(
            f"a comparison needs environments and recipes of different names, got {list(envs)} and {names}"
        )
    if config.seeds < 2:
        raise InputError(f"seeds is {config.seeds}; an interval over seeds needs at least 2")
    models = {env: load_env(env) for env in envs}
    histories = {
        env: {recipe.name: train(recipe, model, config, progress(env, recipe.name)) for recipe in recipes}
        for env, model in models.items()
    }
    scores = {
        recipe.name: {env: measure(histories[env][recipe.name], models[env]) for env in envs} for recipe in recipes
    }
    return Comparison(histories, _rows(scores), _improvement(scores))


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
    defined = values[~values.isnan()]
    return float(stats.iqm(defined)) if len(defined) else math.nan


def load_env(name: str) -> ExactModel:
    """The exact model of a toy environment by name; raises InputError naming the nearest one."""
    try:
        return make_model(name)
    except ValueError as error:
        raise InputError(str(error)) from None


def measure(history: History, model: ExactModel) -> dict[str, Tensor]:
    """Each measure of `MEASURES` per seed, `[seeds]`. "Final" is the mean over the last tenth of the measurements."""
    score = model.score(history.curves["reward"])
    last = max(1, len(history.steps) // 10)
    return {
        "final score": score[:, -last:].mean(-1),
        "learning score": score.mean(-1),
        "final entropy": history.curves["entropy"][:, -last:].mean(-1),
    }


Scores = Mapping[str, Mapping[str, Mapping[str, Tensor]]]  # recipe -> environment -> measure -> [seeds]


def _rows(scores: Scores) -> list[dict[str, Any]]:
    rows = []
    for recipe, by_env in scores.items():
        for env, names in _strata(by_env).items():
            for what in MEASURES:
                values = torch.stack([by_env[name][what] for name in names])
                interval = stats.stratified_bootstrap(values, _iqm, torch.Generator().manual_seed(0))
                found = {"iqm": interval.estimate, "low": interval.low, "high": interval.high}
                rows.append({"env": env, "recipe": recipe, "metric": what, **found, "n_seeds": values.shape[-1]})
    return rows


def _improvement(scores: Scores) -> list[dict[str, Any]]:
    first, *others = scores
    rows = []
    for other in others:
        for env, names in _strata(scores[first]).items():
            for what in ("final score", "learning score"):
                ours, theirs = (torch.stack([scores[r][n][what] for n in names]) for r in (first, other))
                interval = stats.improvement_interval(ours, theirs, torch.Generator().manual_seed(0))
                found = {"probability": interval.estimate, "low": interval.low, "high": interval.high}
                rows.append({"env": env, "recipe": first, "against": other, "metric": what, **found})
    return rows


def _strata(by_env: Mapping[str, object]) -> dict[str, list[str]]:
    """Each environment alone, and all of them together when there are several."""
    strata = {env: [env] for env in by_env}
    return strata | {"all": list(by_env)} if len(strata) > 1 else strata


def _iqm(values: Tensor) -> Tensor:
    """Interquartile mean over all environments and seeds together (2108.13264)."""
    return stats.iqm(values.flatten(-2))
