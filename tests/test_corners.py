"""Corners of the core that were once wrong, each with the input that showed it."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from batches import bandit, tokens

import etr
from etr.batch import Batch
from etr.diagnostics import clipped, homogeneous
from etr.errors import FieldError, InputError
from etr.objectives.grpo import GRPO
from etr.recipe import load_recipe, recipe_from_dict
from etr.toy.compare import compare
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

MODULE = """
from dataclasses import dataclass
from etr.objectives.grpo import GRPO
@dataclass(frozen=True)
class Mine(GRPO):
    extra: float = 1.0
WIDE = GRPO(eps_high=0.9)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "corner_module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "corner_module", raising=False)
    return "corner_module"


def test_unregistered_subclass_has_its_own_name(module: str) -> None:
    recipe = load_recipe(f"{module}:Mine")
    assert recipe.name == recipe.objective.name == "Mine" and GRPO.name == "grpo"
    again = recipe_from_dict(recipe.as_dict(), "n", "f.yaml")
    assert again.objective == recipe.objective and again.name == "Mine"


def test_object_of_a_registered_class_is_told_apart(module: str) -> None:
    assert load_recipe(f"{module}:WIDE").name != "grpo"


def test_two_recipes_of_one_name_do_not_overwrite_each_other() -> None:
    with pytest.raises(InputError):
        compare(
            [load_recipe("etr"), load_recipe("etr", {"micro": 0.0})],
            ["bandit-fixed-gap"],
            ToyConfig(iterations=1, seeds=2),
        )


def test_learning_rate_zero_is_zero_or_refused() -> None:
    h = train(
        load_recipe("grpo", {"optimizer.lr": 0.0}), make_model("bandit-fixed-gap"), ToyConfig(iterations=1, seeds=2)
    )
    assert h.logits.abs().max() == 0


def test_old_log_probs_with_graph() -> None:
    lp = torch.full((4, 1), -1.5, requires_grad=True)
    adv = etr.advantages.group_zscore(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
    etr.policy_loss(etr.get("grpo"), Batch(lp, lp, torch.ones(4, 1) > 0, adv)).loss.backward()
    assert lp.grad is not None and (lp.grad != 0).all()


def test_rounding_noise_is_no_step() -> None:
    m, c = make_model("bandit-spread"), ToyConfig(iterations=5, group_size=8, seeds=4)
    a, b = (train(load_recipe("grpo", {"optimizer.micro_batches": n}), m, c).logits for n in (1, 7))
    assert (a - b).abs().max() < 1e-6


def test_kl_metric_of_gspo_is_a_kl() -> None:
    new = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    pairs = torch.cartesian_prod(new, new)  # all answers of two tokens, once each, under a uniform old policy
    batch = Batch(
        pairs, torch.full_like(pairs, math.log(0.25)), torch.ones(16, 2) > 0, torch.zeros(16, dtype=torch.float64)
    )
    found = etr.policy_loss(etr.get("gspo"), batch).metrics["policy/kl_old_to_new_k3"].value.item()
    assert found == pytest.approx(-(new - math.log(0.25)).mean().item(), rel=1e-6)


def test_means_are_exact_in_bfloat16() -> None:
    old = torch.full((2, 300), -1.0).bfloat16()
    mask = torch.ones(2, 300) > 0
    mask[0, -1] = False
    batch = Batch(old, old, mask, torch.tensor([1.0, -1.0]).bfloat16())
    assert clipped(etr.get("grpo"), batch)["region/zero_grad_frac"].count.item() == 599
    assert etr.policy_loss(etr.get("grpo"), batch).metrics["policy/objective"].count.item() == 599


def test_half_precision_rewards_are_refused_because_counts_would_be_rounded() -> None:
    with pytest.raises(InputError, match="single or double precision"):
        etr.group_stats((torch.arange(511) % 2).bfloat16(), torch.zeros(511, dtype=torch.long))


@pytest.mark.parametrize("fields", [{"micro": 1.5}, {"macro": 2.5}])
def test_elastic_fields_whose_scale_could_turn_negative_are_refused(fields: dict[str, float]) -> None:
    with pytest.raises(FieldError, match="give a number from 0 to"):
        etr.get("etr", **fields)


def test_eps_min_above_eps_max_is_refused() -> None:
    with pytest.raises(InputError):
        etr.get("etr", eps_min=0.4, eps_max=0.1)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("dr_grpo", "length", 2.5),
        ("dr_grpo", "length", math.inf),
        ("grpo", "beta", math.inf),
        ("etr", "micro", math.inf),
    ],
)
def test_infinite_and_fractional_fields(name: str, field: str, value: float) -> None:
    with pytest.raises(FieldError):
        etr.get(name, **{field: value})


def test_float_ids_are_refused_because_rounding_would_merge_groups() -> None:
    with pytest.raises(InputError, match="give integers"):
        etr.group_stats(torch.tensor([1.0, 0, 1, 0]), torch.tensor([0.1, 0.1, 0.7, 0.7]))


def test_empty_reward_range_is_refused() -> None:
    with pytest.raises(InputError):
        etr.group_stats(torch.ones(2), torch.zeros(2, dtype=torch.long), (1.0, 1.0))


@pytest.mark.parametrize(
    "data",
    [
        {"objective": "etr", "advantage": 5},
        {"objective": "etr", "advantage": ["loo"]},
        {"objective": "etr", "optimizer": {1: 2}},
        {"objective": {"name": "etr", 1: 2}},
    ],
)
def test_yaml_of_other_types_is_one_sentence(data: dict[str, object]) -> None:
    with pytest.raises(InputError):
        recipe_from_dict(data, "n", "f.yaml")


def test_objective_without_name() -> None:
    with pytest.raises(InputError, match="name"):
        recipe_from_dict({"objective": {"eps_low": 0.1}}, "n", "f.yaml")


@pytest.mark.parametrize("source", [":Name", ".x:Name"])
def test_module_that_is_no_module(source: str) -> None:
    with pytest.raises(InputError):
        load_recipe(source)


def test_missing_import_inside_the_users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import no_such_package")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="needs_more itself needs 'no_such_package'"):
        load_recipe("needs_more:X")


def test_one_seed_is_refused_before_training() -> None:
    seen: list[int] = []
    with pytest.raises(InputError):
        compare([load_recipe("etr")], ["bandit-fixed-gap"], ToyConfig(iterations=1, seeds=1), lambda e, r: seen.append)
    assert not seen


def test_no_recipes() -> None:
    with pytest.raises(InputError):
        compare([], ["bandit-fixed-gap"], ToyConfig(iterations=1, seeds=2))


def test_homogeneous_means_one_reward_in_the_group() -> None:
    objective, rewards = etr.get("grpo"), torch.tensor([0.0, 0.5, 1.0, 0.5])
    batch = bandit(objective, rewards.double(), torch.zeros(4, dtype=torch.long))
    assert homogeneous(batch)["group/homogeneous_frac"].value.item() == 0.0


def test_unknown_need_is_one_sentence() -> None:
    @dataclass(frozen=True)
    class Needy(GRPO):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"top_k"})

    with pytest.raises(InputError):
        Needy().require((), "the toy trainer")


def test_register_notices_a_forgotten_dataclass() -> None:
    class Forgot(GRPO):
        eps_high: float = 0.4

    with pytest.raises(InputError, match="Forgot is no dataclass"):
        etr.register("forgot")(Forgot)


def test_missing_reference_is_not_silently_no_penalty() -> None:
    with pytest.raises((InputError, AssertionError)):
        etr.policy_loss(etr.get("grpo", beta=1.0), tokens([[0.1]], [0.0]), check=False)


def test_no_warning_from_micro_batched_toy() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(
            load_recipe("etr", {"optimizer.micro_batches": 2}),
            make_model("bandit-fixed-gap"),
            ToyConfig(iterations=1, seeds=2),
        )


def test_zscore_of_tiny_differences_is_finite() -> None:
    assert etr.advantages.group_zscore(torch.tensor([0.0, 1e-30]), torch.zeros(2, dtype=torch.long)).isfinite().all()


def test_curves_without_value_are_not_zero() -> None:
    from etr.toy.compare import curve_rows
    from etr.toy.recorder import History

    curve = torch.tensor([[math.nan], [math.nan], [0.4], [0.4]])
    row = next(iter(curve_rows({"e": {"r": History([1], {"x": curve}, curve, curve)}})))[1]
    assert row["e/r/x"] == pytest.approx(0.4)


def test_toy_settings_must_be_whole() -> None:
    with pytest.raises(InputError):
        ToyConfig(iterations=2.5).check()  # type: ignore[arg-type]
