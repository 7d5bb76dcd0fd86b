"""Comparisons: every number of the summary recomputed by hand from the histories."""

from __future__ import annotations

import dataclasses
import itertools
import math
from statistics import fmean
from typing import Any

import pytest
import torch

from etr.errors import InputError
from etr.objectives.grpo import GRPO
from etr.recipe import load_recipe
from etr.toy.compare import Comparison, check_request, compare, curve_rows, load_env
from etr.toy.config import ToyConfig
from etr.toy.measures import MATCHED, MEASURES, entropy_at
from toy_envs import make_model

ENVS = ("bandit-spread", "tree-easy")
RECIPES = ("etr", "grpo", "gspo")
CONFIG = ToyConfig(iterations=20, group_size=4, seeds=5)
LEVEL = 0.5


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare([load_recipe(name) for name in RECIPES], ENVS, CONFIG, level=LEVEL)


def measured(comparison: Comparison, env: str, recipe: str) -> dict[str, list[float]]:
    """Each measure per seed: "final" is the mean of the last tenth, here 2 of 20."""
    curves = comparison.histories[env][recipe].curves
    success = make_model(env).success
    uniform, best = success.mean().item(), success.amax(-1).mean().item()
    scores = [[min(max((j - uniform) / (best - uniform), 0.0), 1.0) for j in row] for row in curves["reward"].tolist()]
    return {
        "final score": [fmean(row[-2:]) for row in scores],
        "learning score": [fmean((a + b) / 2 for a, b in itertools.pairwise(row)) for row in scores],
        "final entropy": [fmean(row[-2:]) for row in curves["entropy"].tolist()],
        MATCHED: [matched(*run) for run in zip(scores, curves["entropy"].tolist(), strict=True)],
    }


def matched(score: list[float], entropy: list[float]) -> float:
    """Walk along the run until the score passes the level; NaN if it never does or did so before the first point."""
    for (s, h), (t, k) in itertools.pairwise(zip(score, entropy, strict=True)):
        if s >= LEVEL:
            return math.nan
        if t >= LEVEL:
            return h + (k - h) * (LEVEL - s) / (t - s)
    return math.nan


def defined(values: list[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def trimmed_mean(values: list[float]) -> float:
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


def test_interquartile_means(comparison: Comparison) -> None:
    rows = {(row["env"], row["recipe"], row["metric"]): row for row in comparison.rows}
    seen = 0
    for recipe, what in itertools.product(RECIPES, MEASURES):
        by_env = {env: defined(measured(comparison, env, recipe)[what]) for env in ENVS}
        pooled = [value for values in by_env.values() for value in values]
        for env, values in by_env.items() if what == MATCHED else {**by_env, "all": pooled}.items():
            if len(values) < 3:
                assert (env, recipe, what) not in rows
                continue
            row, seen = rows[env, recipe, what], seen + 1
            assert row["iqm"] == pytest.approx(trimmed_mean(values), rel=1e-9)
            assert row["low"] <= row["iqm"] <= row["high"] and row["low"] < row["high"]
            assert min(values) <= row["low"] and row["high"] <= max(values)
            assert row["n_seeds"] == (5 if env == "all" else len(values))
    assert seen == len(rows) == len(comparison.rows)
    assert any(row["metric"] == MATCHED for row in comparison.rows)


def test_paired_differences(comparison: Comparison) -> None:
    """The first recipe minus each other, seed by seed, over the seeds that have both values."""
    rows = {(row["env"], row["against"], row["metric"]): row for row in comparison.differences}
    assert len(rows) == len(comparison.differences) > 3 * 2 * 3
    for (env, other, what), row in rows.items():
        d = []
        for name in ENVS if env == "all" else (env,):
            ours, theirs = (measured(comparison, name, recipe)[what] for recipe in ("etr", other))
            d += defined([x - y for x, y in zip(ours, theirs, strict=True)])
        assert row["recipe"] == "etr" and row["difference"] == pytest.approx(fmean(d), abs=1e-12)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["n_pairs"] == (5 if env == "all" else len(d)) >= 3


def test_verdicts_are_corrected_for_the_number_of_comparisons_of_a_measure(comparison: Comparison) -> None:
    words = {"final score": ("better", "worse"), "learning score": ("better", "worse")}
    for what in MEASURES:
        family = [row for row in comparison.differences if row["metric"] == what]
        ranked = sorted(family, key=lambda row: row["p"])
        for rank, row in enumerate(ranked):
            assert row["p_holm"] == pytest.approx(
                min(1, max(row["p"] * (len(family) - i) for i, row in enumerate(ranked[: rank + 1])))
            )
            up, down = words.get(what, ("more", "less"))
            unseen = "too few seeds to tell" if clearest(row) * len(family) > 0.05 else "no difference seen"
            expected = unseen if row["p_holm"] > 0.05 else up if row["difference"] > 0 else down
            assert row["verdict"] == expected
    seen = {row["verdict"] for row in comparison.differences}
    assert {"too few seeds to tell", "no difference seen"} <= seen  # 5 seeds in one environment, 10 in both


def clearest(row: dict[str, Any]) -> float:
    """p of differences that are all alike: the share of sign flips that keep their sum, by counting all of them."""
    n = row["n_pairs"] * (len(ENVS) if row["env"] == "all" else 1)
    return fmean(abs(sum(signs)) == n for signs in itertools.product([1, -1], repeat=n))


def test_a_rule_that_cannot_learn_is_worse_and_one_that_is_the_same_is_not() -> None:
    recipes = [
        load_recipe("grpo"),
        dataclasses.replace(load_recipe("grpo", {"optimizer.lr": 0.0}), name="asleep"),
        dataclasses.replace(load_recipe("grpo"), name="twin"),
    ]
    config = ToyConfig(iterations=15, group_size=8, seeds=12)
    result = compare(recipes, ["bandit-fixed-gap"], config, level=0.3)
    verdicts = {(row["against"], row["metric"]): row["verdict"] for row in result.differences}
    assert verdicts["asleep", "final score"] == verdicts["asleep", "learning score"] == "better"
    assert verdicts["asleep", "final entropy"] == "less"
    assert ("asleep", MATCHED) not in verdicts  # it never gets there
    assert ("asleep", MATCHED) not in {(row["recipe"], row["metric"]) for row in result.rows}
    assert {verdicts["twin", what] for what in MEASURES} == {"no difference seen"}


def test_one_row_per_environment_recipe_and_seed(comparison: Comparison) -> None:
    rows = {(row["env"], row["recipe"], row["seed"]): row for row in comparison.seeds}
    assert len(rows) == len(comparison.seeds) == len(ENVS) * len(RECIPES) * 5
    for env, recipe in itertools.product(ENVS, RECIPES):
        for what, values in measured(comparison, env, recipe).items():
            found = [rows[env, recipe, seed][what.replace(" ", "_")] for seed in range(5)]
            assert found == pytest.approx(values, rel=1e-9, nan_ok=True)


def test_entropy_at_a_score_is_read_off_each_runs_own_path() -> None:
    score = torch.tensor([[0.1, 0.3, 0.7, 0.2], [0.1, 0.2, 0.3, 0.4], [0.6, 0.7, 0.8, 0.9], [0.0, 0.5, 0.4, 0.6]])
    entropy = torch.tensor([[2.0, 1.5, 1.1, 0.1]] * 4)
    found = entropy_at(score.double(), entropy.double(), 0.5)
    assert found.tolist() == pytest.approx([1.3, math.nan, math.nan, 1.5], nan_ok=True)
    # A measured point on the line between two others does not change it, as a finer measurement would not.
    finer = torch.tensor([[0.1, 0.3, 0.4, 0.7]]), torch.tensor([[2.0, 1.5, 1.4, 1.1]])
    assert entropy_at(*finer, 0.5).item() == pytest.approx(1.3)


@pytest.mark.parametrize("level", [0.0, 1.5, math.nan])
def test_levels_are_scores(level: float) -> None:
    with pytest.raises(InputError, match=r"give a score above 0 and up to 1, such as 0\.9"):
        compare([load_recipe("etr")], ["tree-easy"], CONFIG, level=level)


def test_two_seeds_are_too_few_for_an_interval() -> None:
    with pytest.raises(InputError, match="seeds is 2; an interval over seeds needs at least 3"):
        compare([load_recipe("etr")], ["tree-easy"], ToyConfig(seeds=2))


@dataclasses.dataclass(frozen=True)
class Hinted(GRPO):
    """Needs what only some environments have."""

    needs = frozenset({"hints"})  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("recipes", "envs", "config", "message"),
    [
        (
            ["etr"],
            ["bandit", "bandit-spread"],
            CONFIG,
            "'bandit' and 'bandit-spread' are one environment; name it once",
        ),
        (["etr"], ["tree-easy"], dataclasses.replace(CONFIG, policy="linaer"), "did you mean 'linear'"),
        (["etr"], ["tree-easy"], dataclasses.replace(CONFIG, seeds=0), "seeds is 0; give at least 1"),
        ([f"{__name__}:Hinted"], ["tree-easy", "bandit"], CONFIG, "the toy trainer in 'bandit' does not have"),
        (["etr", "etr"], ["tree-easy"], CONFIG, "different names"),
    ],
)
def test_a_request_is_checked_before_anything_is_trained(
    recipes: list[str], envs: list[str], config: ToyConfig, message: str
) -> None:
    for ask in (check_request, lambda *asked: compare(*asked[:3], level=asked[3])):
        with pytest.raises(InputError, match=message):
            ask([load_recipe(name) for name in recipes], envs, config, LEVEL)


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
        ToyConfig(iterations=2, group_size=4, seeds=3),
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
