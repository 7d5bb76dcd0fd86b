"""Recipes: where they come from, what can be changed, and what is refused."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from batches import rewards_of

import etr
from etr.advantages import group_center, group_zscore
from etr.errors import FieldError, InputError
from etr.objectives.etr import ETR
from etr.recipe import OptimizerSettings, Recipe, load_recipe

FULL = """\
name: careful
objective:
  name: etr
  micro: 0.3
  eps_high: 0.28
advantage: leave_one_out
optimizer:
  lr: 1.0e-5
  updates: 2
  micro_batches: 4
  max_grad_norm: null
"""


def write(folder: Path, text: str, name: str = "my_recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def error_of(source: str | Path, overrides: dict[str, object] | None = None) -> str:
    """The sentence with which a source is refused."""
    with pytest.raises(InputError) as caught:
        load_recipe(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_objective_is_a_recipe(name: str) -> None:
    assert load_recipe(name) == Recipe(name, etr.get(name), None, OptimizerSettings())


def test_a_full_yaml_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, FULL))
    assert recipe.name == "careful" and recipe.advantage == "leave_one_out"
    assert recipe.objective == ETR(micro=0.3, eps_high=0.28)
    assert recipe.optimizer == OptimizerSettings(lr=1e-5, updates=2, micro_batches=4, max_grad_norm=None)


def test_a_short_yaml_file(tmp_path: Path) -> None:
    """Only the objective must be there; the file gives the name. An empty section changes nothing."""
    assert load_recipe(str(write(tmp_path, "objective: dapo", "my-dapo.yml"))) == Recipe("my-dapo", etr.get("dapo"))
    assert load_recipe(write(tmp_path, "objective: dapo\noptimizer:\n")).optimizer == OptimizerSettings()


@pytest.mark.parametrize("name", etr.list_objectives())
def test_round_trip_through_yaml(name: str, tmp_path: Path) -> None:
    for recipe in (load_recipe(name), load_recipe(name, {"advantage": "batch_whiten", "optimizer.lr": 0.5})):
        assert load_recipe(write(tmp_path, yaml.safe_dump(recipe.as_dict()))) == recipe


def test_the_advantage_is_the_recipes_or_else_the_objectives() -> None:
    rewards, ids = rewards_of(1, 2, size=4)
    assert torch.equal(load_recipe("dr_grpo").advantages(rewards, ids), group_center(rewards, ids))
    changed = load_recipe("dr_grpo", {"advantage": "group_zscore"})
    assert torch.equal(changed.advantages(rewards, ids), group_zscore(rewards, ids))
    assert changed.replace({"advantage": None}) == load_recipe("dr_grpo")


def test_overrides() -> None:
    """Plain names are the objective's fields; the original is not changed."""
    recipe = load_recipe("etr")
    changed = recipe.replace({"micro": 0.3, "objective.macro": 0.1, "optimizer.lr": 0.1, "advantage": "group_center"})
    assert changed.objective == ETR(micro=0.3, macro=0.1)
    assert changed.optimizer == OptimizerSettings(lr=0.1)
    assert (changed.name, changed.advantage) == ("etr", "group_center")
    assert recipe == load_recipe("etr")
    assert load_recipe("etr", {"micro": 0.3}) == recipe.replace({"micro": 0.3})


MODULE = '''
from dataclasses import dataclass
import etr
from etr.objective import Objective, Paper

@dataclass(frozen=True)
class FreshRule(Objective):
    """Not registered."""
    strength: float = 0.5
    paper = Paper("mine", "", "reconstructed")

@etr.register("registered_rule")
@dataclass(frozen=True)
class RegisteredRule(FreshRule):
    strength: float = 0.7

strong = RegisteredRule(strength=0.9)
whole = etr.Recipe("all of it", strong, "leave_one_out")
nothing = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's own module in the folder that the command is run from."""
    from etr import registry

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))
    write(tmp_path, MODULE, "users_own_module.py")
    yield "users_own_module"
    sys.modules.pop("users_own_module", None)


def test_from_a_module(module: str) -> None:
    fresh = load_recipe(f"{module}:FreshRule", {"strength": 0.6})
    assert (fresh.name, fresh.objective.name) == ("FreshRule", "FreshRule")  # called by its own name
    assert fresh.as_dict()["objective"]["strength"] == 0.6
    registered = load_recipe(f"{module}:RegisteredRule")
    assert (registered.name, registered.as_dict()["objective"]["strength"]) == ("registered_rule", 0.7)
    assert load_recipe("registered_rule") == registered  # its import registered it
    assert load_recipe(f"{module}:strong").as_dict()["objective"]["strength"] == 0.9
    whole = load_recipe(f"{module}:whole")
    assert (whole.name, whole.advantage) == ("all of it", "leave_one_out")


def test_modules_that_do_not_fit(module: str) -> None:
    assert error_of(f"{module}:FrehsRule").startswith(
        f"recipe {module}:FrehsRule: unknown name 'FrehsRule'; did you mean 'FreshRule'? Valid: "
    )
    assert error_of(f"{module}:nothing") == (
        f"recipe {module}:nothing has type int; give an Objective class or object, or a Recipe"
    )
    missing = error_of("no_such_module:Rule")
    assert missing.startswith("recipe no_such_module:Rule: No module named 'no_such_module'")
    assert missing.endswith("run the command in the folder that holds no_such_module.py")


BAD_YAML = [
    (
        "objectiv: etr",
        "unknown key 'objectiv'; did you mean 'objective'? Valid: advantage, correction, name, objective, optimizer",
    ),
    ("name: x", "the key 'objective' is missing; add for example `objective: etr`"),
    ("objective: ert", "unknown objective 'ert'; did you mean 'etr'?"),
    ("objective: {name: etr, mico: 1}", "unknown field of objective 'etr': 'mico'; did you mean 'micro'?"),
    ("objective: {name: etr, micro: high}", "ETR.micro is 'high'; give a number"),
    ("objective: {name: etr, micro: -1}", "ETR.micro is -1; give a number from 0 to"),
    ("objective: 5", "'objective' is 5; write its fields as `key: value` lines below it"),
    ("objective: etr\noptimizer: fast", "'optimizer' is 'fast'; write its fields"),
    ("objective: etr\noptimizer: {lrr: 1}", "unknown field of optimizer: 'lrr'; did you mean 'lr'?"),
    ("objective: etr\noptimizer: {lr: 1e-5}", "optimizer.lr is '1e-5'; give a number of at least 0, such as 1.0e-5"),
    ("objective: etr\noptimizer: {lr: -1}", "optimizer.lr is -1; give a number of at least 0"),
    ("objective: etr\noptimizer: {lr: .inf}", "optimizer.lr is inf; give a number"),
    ("objective: etr\noptimizer: {updates: 0}", "optimizer.updates is 0; give a whole number of at least 1"),
    ("objective: etr\noptimizer: {updates: 2.5}", "optimizer.updates is 2.5; give a whole number"),
    ("objective: etr\noptimizer: {updates: null}", "optimizer.updates is None; give a whole number"),
    ("objective: etr\noptimizer: {micro_batches: true}", "optimizer.micro_batches is True; give a whole number"),
    ("objective: etr\noptimizer: {weight_decay: null}", "optimizer.weight_decay is None; give a number"),
    ("objective: etr\nadvantage: zscore", "unknown advantage 'zscore'; did you mean 'group_zscore'?"),
]


@pytest.mark.parametrize(("text", "sentence"), BAD_YAML)
def test_yaml_with_a_mistake_names_file_and_mend(text: str, sentence: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert error_of(path).startswith(f"{path}: {sentence}")


@pytest.mark.parametrize("text", ["", "- etr", "etr", "# nothing"])
def test_yaml_that_holds_no_mapping(text: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert error_of(path) == f"recipe file {path} holds no settings; start with `objective: etr`"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert error_of(missing) == f"recipe file {missing} does not exist; check the path"
    broken = write(tmp_path, "objective: [etr\nname: x")
    assert error_of(broken).startswith(f"recipe file {broken} is not valid YAML: while parsing a flow sequence")
    folder = tmp_path / "folder.yaml"
    folder.mkdir()
    assert error_of(folder).startswith(f"recipe file {folder} cannot be read: ")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    assert error_of(binary).startswith(f"recipe file {binary} cannot be read: ")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("mico", 1, "unknown field of objective 'etr': 'mico'; did you mean 'micro'?"),
        ("optimizer.learning_rate", 1, "unknown field of optimizer: 'learning_rate'"),
        (
            "optimiser.lr",
            1,
            "unknown recipe section 'optimiser'; did you mean 'optimizer'? Valid: correction, objective, optimizer",
        ),
        ("advantage", "loo", "unknown advantage 'loo'"),
        ("micro", "much", "ETR.micro is 'much'; give a number"),
    ],
)
def test_overrides_that_do_not_fit(key: str, value: Any, sentence: str) -> None:
    assert error_of("etr", {key: value}).startswith(sentence)


def test_a_wrong_field_keeps_its_kind_of_error(tmp_path: Path) -> None:
    """The place is put in front without losing that it is a FieldError."""
    path = write(tmp_path, "objective: {name: etr, mico: 1}")
    with pytest.raises(FieldError, match=re.escape(f"{path}: unknown field")):
        load_recipe(os.fspath(path))
