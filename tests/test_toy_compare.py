"""Comparisons: every number of the summary recomputed by hand from the histories."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest
import torch

from etr.errors import InputError
from etr.recipe import load_recipe
from etr.toy.compare import MEASURES, Comparison, compare, curve_rows, load_env
from etr.toy.train import ToyConfig
from toy_envs import make_model

ENVS = ("bandit-spread", "tree-easy")
RECIPES = ("etr", "grpo", "gspo")
CONFIG = ToyConfig(iterations=20, group_size=4, seeds=5)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare([load_recipe(name) for name in RECIPES], ENVS, CONFIG)


def measured(comparison: Comparison, env: str, recipe: str) -> dict[str, list[float]]:
    """Each measure per seed: "final" is the mean of the last tenth, here 2 of 20."""
    curves = comparison.histories[env][recipe].curves
    success = make_model(env).success
    uniform, best = success.mean().item(), success.amax(-1).mean().item()
    scores = [[min(max((j - uniform) / (best - uniform), 0.0), 1.0) for j in row] for row in curves["reward"].tolist()]
    return {
        "final score": [fmean(row[-2:]) for row in scores],
        "learning score": [fmean(row) for row in scores],
        "final entropy": [fmean(row[-2:]) for row in curves["entropy"].tolist()],
    }


def trimmed_mean(values: list[float]) -> float:
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


def test_interquartile_means(comparison: Comparison) -> None:
    rows = {(row["env"], row["recipe"], row["metric"]): row for row in comparison.rows}
    assert len(rows) == len(comparison.rows) == 3 * len(RECIPES) * len(MEASURES)
    for recipe, what in itertools.product(RECIPES, MEASURES):
        by_env = {env: measured(comparison, env, recipe)[what] for env in ENVS}
        pooled = [value for values in by_env.values() for value in values]
        for env, values in {**by_env, "all": pooled}.items():
            row = rows[env, recipe, what]
            assert row["iqm"] == pytest.approx(trimmed_mean(values), rel=1e-9)
            assert row["low"] <= row["iqm"] <= row["high"] and row["low"] < row["high"]
            assert min(values) <= row["low"] and row["high"] <= max(values)
            assert row["n_seeds"] == 5


def test_probabilities_of_improvement(comparison: Comparison) -> None:
    """The first recipe against each other: how often a seed of it beats one of the other, ties count one half."""
    rows = {(row["env"], row["against"], row["metric"]): row for row in comparison.improvement}
    assert len(rows) == len(comparison.improvement) == 3 * 2 * 2
    for other, what in itertools.product(RECIPES[1:], ("final score", "learning score")):
        wins = {}
        for env in ENVS:
            ours, theirs = (measured(comparison, env, name)[what] for name in ("etr", other))
            wins[env] = fmean((x > y) + (x == y) / 2 for x in ours for y in theirs)
        for env, want in {**wins, "all": fmean(wins.values())}.items():
            row = rows[env, other, what]
            assert row["recipe"] == "etr"
            assert row["probability"] == pytest.approx(want, rel=1e-9)
            assert 0 <= row["low"] <= row["probability"] <= row["high"] <= 1


def test_a_single_environment_has_no_summary_over_all() -> None:
    seen: list[tuple[str, str, int]] = []
    result = compare(
        [load_recipe("etr")],
        ["bandit-spread"],
        ToyConfig(iterations=2, group_size=4, seeds=2),
        lambda env, recipe: lambda step: seen.append((env, recipe, step)),
    )
    assert {row["env"] for row in result.rows} == {"bandit-spread"} and result.improvement == []
    assert seen == [("bandit-spread", "etr", 1), ("bandit-spread", "etr", 2)]


def test_curves_for_the_metrics_file(comparison: Comparison) -> None:
    rows = dict(curve_rows(comparison.histories))
    assert list(rows) == list(range(1, 21))
    reward = comparison.histories["tree-easy"]["gspo"].curves["reward"]
    for step in (1, 20):
        assert rows[step]["tree-easy/gspo/reward"] == pytest.approx(trimmed_mean(reward[:, step - 1].tolist()))
    names = {key.split("/", 2)[2] for key in rows[1]}
    assert names == set(comparison.histories["tree-easy"]["gspo"].curves)


def test_all_recipes_see_the_same_draws(comparison: Comparison) -> None:
    """A comparison is paired: alone, a recipe has the same history as in company."""
    alone = compare([load_recipe("gspo")], ["tree-easy"], CONFIG).histories["tree-easy"]["gspo"]
    assert torch.equal(alone.logits, comparison.histories["tree-easy"]["gspo"].logits)


def test_environments_by_name() -> None:
    assert load_env("tree-easy").prompts == 8
    with pytest.raises(InputError, match="unknown environment 'tree-esy'; did you mean 'tree-easy'"):
        compare([load_recipe("etr")], ["tree-esy"], CONFIG)
