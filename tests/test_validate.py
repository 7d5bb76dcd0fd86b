"""The suite: a sound recipe passes, and each defect is found by the criterion that is about it, and by no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import bad_recipes
import pytest
import torch

import etr
from etr.objective import Objective
from etr.recipe import Recipe, load_recipe
from etr.toy.cache import Cache, train_all
from etr.toy.config import ToyConfig
from etr.toy.measures import measure
from etr.validate import CRITERIA, ORDER, Scorecard, suite
from etr.validate.base import Bench, Sizes
from etr.validate.batches import loss_and_gradient, ragged_batch, ready, stale_answers
from etr.validate.learning import BANDIT, MARGIN, equal_width
from toy_envs import make_model

TINY = Sizes(tuning=3, judged=12, iterations=20, batches=8, turns=3)
LEARNING = {"learning-bandit", "learning-tokens"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "QUICK", TINY)


def scorecard(objective: Objective, cache: Cache | None, name: str = "") -> Scorecard:
    return suite.validate(Recipe(name or type(objective).__name__, objective), quick=True, cache=cache)[0]


def found(card: Scorecard, name: str) -> dict[str, object]:
    return next(dict(c) for c in card.criteria if c["name"] == name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "failing"),
    [
        ("Sound", set()),
        ("FlippedSign", {"laws-kept", "sign", *LEARNING}),
        ("ExcludesOne", {"laws-kept", "region", *LEARNING}),
        ("LocalMean", {"laws-kept", "splits"}),
        ("BatchStatistic", {"laws-kept", "splits"}),
        ("NotANumber", {"laws-kept", "extreme-ratios"}),
        ("SquaredRatio", {"extreme-ratios", "stale-data", *LEARNING}),
        ("NoGradient", {"laws-kept", "sign", *LEARNING}),
        ("Cancels", {"bfloat16"}),
        ("Slow", {"cost"}),
        ("Raises", set(ORDER)),
    ],
)
def test_each_defect_fails_for_its_own_reason(name: str, failing: set[str], cache: Cache) -> None:
    card = scorecard(getattr(bad_recipes, name)(), cache)
    assert set(card.failed) == failing, [found(card, n)["text"] for n in set(card.failed) ^ failing]
    assert card.passed == (not failing)
    assert len(card.reasons()) == len(failing)


def test_what_cannot_be_measured_says_so_and_is_no_pass(cache: Cache) -> None:
    card = scorecard(bad_recipes.NoGradient(), cache)
    assert found(card, "sign")["outcome"] == "not applicable" and "sign" in card.failed
    assert found(card, "stale-data")["outcome"] == "not applicable" and "stale-data" not in card.failed
    bench = Bench(load_recipe("arpo"), TINY)
    no_bandit = CRITERIA["learning-bandit"].measure(bench, MARGIN)
    assert no_bandit.outcome == "not applicable" and "resets" in no_bandit.text
    whole = CRITERIA["splits"].measure(Bench(load_recipe("bapo"), TINY), 1e-9)
    assert whole.outcome == "not applicable" and "whole batch" in whole.text


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("NotANumberWhenLong", "splits"),
        ("NotANumberWhenLong", "bfloat16"),
        ("FlippedRegularizer", "sign"),
        ("SquaredWhereClear", "stale-data"),
        ("OnlyStale", "stale-data"),
    ],
)
def test_ways_around_a_criterion_are_closed(name: str, criterion: str) -> None:
    line = CRITERIA[criterion]
    bad, sound = (getattr(bad_recipes, which)() for which in (name, "Sound"))
    assert line.measure(Bench(Recipe(name, bad), TINY), line.limit).outcome == "fail"
    assert line.measure(Bench(Recipe("sound", sound), TINY), line.limit).outcome == "pass"


def test_an_objective_that_raises_names_its_line(cache: Cache) -> None:
    text = found(scorecard(bad_recipes.Raises(), cache), "region")["text"]
    assert "it raised RuntimeError: no region today (line " in str(text) and "bad_recipes.py" in str(text)


def test_equal_seeds_give_equal_scorecards() -> None:
    one, two = (scorecard(etr.get("etr"), None, "etr").as_dict() for _ in range(2))
    for card in (one, two):
        card.pop("made")
        card["criteria"] = [c for c in card["criteria"] if c["name"] != "cost"]
    assert one == two
    assert [c["name"] for c in one["criteria"]] == [name for name in ORDER if name != "cost"]
    assert set(ORDER) == set(CRITERIA)


def test_the_margin_lies_between_two_mistunings_of_grpo() -> None:
    """What the docs say of the line: a rate off by 2 costs less than the margin, one off by 4 more."""
    model = make_model(BANDIT)
    recipes = [
        dataclasses.replace(load_recipe("grpo", {"lr": lr}), name=str(lr)) for lr in (0.06, 0.12, 0.25, 0.5, 1.0)
    ]
    runs = train_all(recipes, model, ToyConfig(iterations=40, seeds=16, metrics_every=2))
    a, b, best, d, e = (float(measure(run, model)["learning score"].mean()) for run in runs)
    assert best > max(a, b, d, e)
    assert best - max(b, d) < MARGIN < best - max(a, e)


def test_the_control_is_as_wide_as_the_recipe() -> None:
    model = make_model(BANDIT)
    control, text = equal_width(Recipe("x", etr.get("grpo", eps_low=0.1, eps_high=0.5)), model)
    assert control is not None and vars(control.objective)["eps_low"] == pytest.approx(0.3) and "0.300" in text
    assert equal_width(load_recipe("grpo"), model)[0] is None
    assert "no symmetric clip range" in equal_width(load_recipe("reinforce"), model)[1]


def test_stale_answers_move_as_far_as_they_say() -> None:
    stale = stale_answers(load_recipe("grpo"), make_model("tree-medium"), 2)
    fresh, near, far = (stale.at(distance) for distance in (0.0, 0.1, 1.6))
    assert torch.equal(fresh.log_probs, fresh.old_log_probs)
    moved = [(b.log_probs - b.old_log_probs).abs().max() for b in (near, far)]
    assert 0.05 < moved[0] <= 0.2 and 0.8 < moved[1] <= 3.2  # a log-prob moves by at most twice its logits


@pytest.mark.parametrize("name", ["etr", "bnpo_beta", "gtpo", "clip_cov"])
def test_long_batches_are_ragged_and_have_the_recipe_s_advantages(name: str) -> None:
    recipe = load_recipe(name, {"advantage": "leave_one_out"})
    batch = ragged_batch(recipe, 3, pieces=12)
    assert batch.log_probs.shape == (16, 60) and batch.response_mask.sum(-1).unique().numel() > 5
    assert batch.rewards is not None and batch.group_ids is not None and batch.turns is not None
    assert torch.equal(batch.advantages, etr.advantages.leave_one_out(batch.rewards, batch.group_ids))
    assert bool((batch.turns.diff() >= 0).all())
    loss, gradient = loss_and_gradient(recipe.objective, ready(recipe, batch))
    assert bool(torch.isfinite(loss)) and gradient.shape == batch.log_probs.shape


def test_the_correction_of_a_recipe_is_part_of_what_is_judged() -> None:
    plain, weighted = (ragged_batch(load_recipe("grpo", {"correction.kind": kind}), 0) for kind in ("none", "tis"))
    assert plain.weights is None and weighted.weights is not None


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from etr.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETR_CACHE", str(tmp_path / "cache"))
    assert main(["validate", "etr", "--quick"]) == 0
    folder = tmp_path / "runs/scorecards/etr"
    assert {path.name for path in folder.iterdir()} == {"scorecard.json", "scorecard.html"}
    page = (folder / "scorecard.html").read_text()
    assert all(name in page for name in ORDER) and page.count("data:image/png") == 3 and "http" not in page
    capsys.readouterr()
    (tmp_path / "mine.py").write_text(
        "from etr.objectives.grpo import GRPO\nclass Mine(GRPO):\n"
        "    def surrogate(self, batch, r, region):\n        return -super().surrogate(batch, r, region)\n"
    )
    assert main(["validate", "mine.py:Mine", "--quick", "--out", "there"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "'Mine' does not pass. laws-kept:" in said and "check the sign of the surrogate" in said
    assert main(["validate", "grpo", "--set", "eps_hgh=1"]) == 2
    assert "did you mean 'eps_high'?" in capsys.readouterr().err
