"""A run that was tampered with before it was recorded: wrong inputs, a wrong gradient or step, other code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from records import prepared_batch, recorded, update

import etr
import etr.toy.update
from etr import replays
from etr.batch import Batch
from etr.groups import GroupStats
from etr.objective import Objective
from etr.objectives.etr import ETR
from etr.recipe import Recipe, load_recipe
from etr.recorded import FILE, Recorded, load
from etr.recording import Recording
from etr.toy.config import ToyConfig
from etr.toy.recorded_run import record_run
from etr.toy.rollout import Scorer
from etr.toy.update import Updater
from toy_envs import make_model

NEUTRAL = {"polychromic": {"set_size": 2}}


def wrong(record: Recorded) -> set[str]:
    return {check.what for check in replays.check_inputs(record) if check.disagrees}


def unchecked(record: Recorded) -> set[str]:
    return {check.what for check in replays.check_inputs(record) if check.verdict == "not checked"}


def toy(folder: Path, recipe: str = "etr") -> Recorded:
    record_run(folder, load_recipe(recipe), make_model("bandit-spread"), ToyConfig(group_size=8))
    return load(folder / FILE)


def replayed(record: Recorded) -> set[str]:
    return {outcome.verdict for outcome in replays.run_all(record, ("toy", "llm"))[0][:2]}


@pytest.mark.parametrize("name", etr.list_objectives())
def test_no_objective_raises_a_false_alarm(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, NEUTRAL.get(name))
    assert not wrong(recorded(recipe, tmp_path / "r"))
    record_run(tmp_path, recipe, make_model("tree-medium"), ToyConfig(group_size=4, iterations=3))
    assert not wrong(load(tmp_path / FILE))


def test_everything_of_a_whole_batch_is_checked(tmp_path: Path) -> None:
    found = {check.what: check.verdict for check in replays.check_inputs(toy(tmp_path))}
    assert found == dict.fromkeys(("denominator", "advantages", "group statistics", "step"), "same")


def llm_record(folder: Path, change: Any = lambda batch: batch, **settings: Any) -> Recorded:
    recipe = load_recipe("etr")
    update(Recording(folder / "r", recipe, "llm", settings), change(prepared_batch(recipe.objective)))
    return load(folder / "r")


def test_a_run_under_a_wrong_denominator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Objective.denominator
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "denominator", lambda self, mask: 7 * true(self, mask))
        record = llm_record(tmp_path)
    assert replayed(record) == {"bit-equal"} and wrong(record) == {"denominator"}
    apart = dataclasses.replace(record, settings={**record.settings, "processes": 2})
    assert not wrong(apart) and "denominator" in unchecked(apart)  # 7 times these rows may be the whole
    less = dataclasses.replace(apart, denominator=record.denominator / 14)
    assert wrong(less) == {"denominator"}  # the rows at hand are more


@pytest.mark.parametrize(("count", "agrees"), [(16.0, True), (32.0, False)])
def test_a_denominator_of_verl_is_held_against_its_counts(count: float, agrees: bool, tmp_path: Path) -> None:
    record = dataclasses.replace(llm_record(tmp_path), host="verl", settings={"global_batch_size": count})
    assert wrong(record) == (set() if agrees else {"denominator"})


def other_group(batch: Batch) -> Batch:
    group = batch.group
    assert group is not None
    half = torch.full_like(group.mean, 0.5)
    return dataclasses.replace(batch, group=GroupStats(half, half / 2, group.size))


def test_a_run_with_wrong_advantages_or_statistics(tmp_path: Path) -> None:
    record = llm_record(tmp_path, lambda batch: dataclasses.replace(batch, advantages=-3 * batch.advantages))
    assert replayed(record) == {"bit-equal"} and wrong(record) == {"advantages"}
    assert wrong(llm_record(tmp_path, other_group)) == {"group statistics"}
    assert not wrong(llm_record(tmp_path, other_group, overlong="penalty"))  # then they are of other rewards
    weighted = llm_record(tmp_path, lambda batch: dataclasses.replace(batch, weights=torch.full((16, 5), 2.0)))
    assert wrong(weighted) == {"weights"}
    assert {"advantages", "group statistics"} <= unchecked(llm_record(tmp_path, processes=2))


def test_a_run_with_a_wrong_column(tmp_path: Path) -> None:
    recipe = load_recipe("grpo_wide")
    batch = prepared_batch(recipe.objective)
    batch = batch.with_columns(wide_low=2 * batch.columns["wide_low"])
    update(Recording(tmp_path / "r", recipe, "llm"), batch)
    assert replayed(load(tmp_path / "r")) == {"bit-equal"} and wrong(load(tmp_path / "r")) == {"column wide_low"}


def test_a_toy_trainer_with_wrong_advantages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true = Recipe.advantages
    with monkeypatch.context() as patch:
        patch.setattr(
            Scorer, "__call__", lambda self, r, ids: (-3 * true(self.recipe, r, ids), etr.group_stats(r, ids))
        )
        record = toy(tmp_path)
    assert wrong(record) == {"advantages"}


@pytest.mark.parametrize("factor", [-1.0, 7.0])
def test_a_toy_trainer_that_changes_its_gradient(
    factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Adam's step does not see a factor; its mean of the gradient does."""
    true = etr.toy.update.gradient
    with monkeypatch.context() as patch:
        patch.setattr("etr.toy.update.gradient", lambda loss, at: factor * true(loss, at))
        record = toy(tmp_path)
    assert wrong(record) == {"step"}


def test_a_toy_trainer_with_another_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "loss", lambda self, p, b, i, n: (self.current(p, b, i).log_probs ** 2).sum() * 5)
        record = toy(tmp_path)
    assert replayed(record) == {"differs"}
    with monkeypatch.context() as patch:
        patch.setattr(ETR, "surrogate", lambda self, batch, log_ratio, region: 2 * log_ratio.exp())
        record = toy(tmp_path)
    assert replayed(record) == {"differs"} and replayed(toy(tmp_path)) == {"bit-equal"}
