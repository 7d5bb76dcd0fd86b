"""The replay proof: both of our trainers' paths meet a record bit for bit, and whatever was changed is found."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from llm_rollouts import made_rollout
from records import prepared_batch, recorded, update
from torch import Tensor

import etr
import etr.replays.paths
from etr import replays
from etr.batch import Region
from etr.errors import InputError
from etr.llm.models import tiny_model
from etr.llm.policy import Policy
from etr.objectives.etr import ETR
from etr.objectives.grpo import GRPO
from etr.recipe import Recipe, load_recipe
from etr.recorded import FILE, Recorded, Replay, load
from etr.recording import Recording
from etr.replays.picture import replay_figure, weights
from etr.toy.config import ToyConfig
from etr.toy.recorded_run import record_run
from etr.toy.update import Updater
from etr.update import add_gradients, split
from toy_envs import make_model

OURS = ("toy", "llm")


def verdicts(record: Recorded, paths: tuple[str, ...] = OURS) -> dict[str, str]:
    return {outcome.path: outcome.verdict for outcome in replays.run_all(record, paths)[0]}


NEUTRAL = {"polychromic": {"set_size": 2}}  # sets of whole groups would leave nothing to compare
ALL_EQUAL = dict.fromkeys(("toy", "llm", "llm against toy"), "bit-equal")


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_objective_replays_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Recorded by `add_gradients` with NaN in the padding, written, read, and computed again by both of our paths."""
    record = recorded(load_recipe(name, NEUTRAL.get(name)), tmp_path / "r")
    assert verdicts(record) == ALL_EQUAL
    assert record.gradient.abs().sum() > 0


@pytest.mark.parametrize("updates", [1, 4])
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
def test_a_toy_run_leaves_the_record_of_its_first_seed(env: str, updates: int, tmp_path: Path) -> None:
    recipe = load_recipe("etr", {"optimizer.updates": updates, "optimizer.micro_batches": 2})
    record_run(tmp_path, recipe, make_model(env), ToyConfig(group_size=4, first_seed=7, seeds=64))
    record = load(tmp_path / FILE)
    assert verdicts(record) == ALL_EQUAL
    assert record.host == "toy" and record.settings["seed"] == 7 and len(record.parts) == 2
    assert record.batch.log_probs.dtype == torch.float64
    assert (record.moved > 0.05, record.settings["update"]) == ((True, 2) if updates > 1 else (False, 1))


def test_recording_changes_nothing_of_a_toy_run(tmp_path: Path) -> None:
    recipe, config = load_recipe("etr"), ToyConfig(iterations=3, group_size=4, seeds=1)
    model, recording = make_model("bandit-spread"), Recording(tmp_path / FILE, load_recipe("etr"), "toy")
    with_it = etr.toy.train.train(recipe, model, config, recording=recording)
    without = etr.toy.train.train(recipe, model, config)
    assert all(
        torch.equal(without.curves[name].nan_to_num(), value.nan_to_num()) for name, value in with_it.curves.items()
    )
    alone = tmp_path / "alone"
    alone.mkdir()
    many = dataclasses.replace(config, seeds=3)
    record_run(alone, recipe, model, many)  # of one seed, trained alone
    assert torch.equal(load(alone / FILE).gradient, load(tmp_path / FILE).gradient)
    of_three = etr.toy.train.train(recipe, model, many).curves["reward"]
    assert torch.equal(of_three[:1], without.curves["reward"])
    for wrong in (many, dataclasses.replace(config, compile=True)):
        with pytest.raises(InputError, match="one uncompiled run"):
            etr.toy.train.train(recipe, model, wrong, recording=recording)


def test_weights_in_bfloat16_stay_exact(tmp_path: Path) -> None:
    """Log-probs are float32 whatever the weights are, so the record holds what the loss saw."""
    recipe, lm, rollout = load_recipe("etr"), tiny_model(dtype="bfloat16"), made_rollout()
    policy, rows = Policy(lm), slice(0, len(rollout.sequences))
    old = policy.log_probs(rollout, rows)[0].detach()
    rewards = (torch.arange(rows.stop) % 3 == 0).float()
    ids = torch.arange(rows.stop) // 3
    batch = etr.Batch(old, old, rollout.response_mask, recipe.advantages(rewards, ids), etr.group_stats(rewards, ids))
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(1.02)
    recording = Recording(tmp_path / FILE, recipe, "llm")
    denominator = recipe.objective.denominator(batch.response_mask)
    passes, watch = recording.around(lambda part: policy.columns(rollout, part, ()))
    add_gradients(recipe.objective, batch, passes, denominator, split(rows.stop, 4), watch)
    recording.finish(denominator)
    record = load(tmp_path / FILE)
    assert next(iter(lm.model.parameters())).dtype == torch.bfloat16 and record.batch.log_probs.dtype == torch.float32
    assert record.moved > 1e-3 and record.gradient.abs().sum() > 0
    assert verdicts(record) == ALL_EQUAL


def tampered(record: Recorded, name: str, row: int, token: int | None, by: float) -> Recorded:
    """The record with one number changed, of the gradient, of its region or of a column of the batch."""
    owner: Any = record if name in ("gradient", "low", "high") else record.batch
    value = getattr(owner, name).clone()
    value[row if token is None else (row, token)] += by
    changed = dataclasses.replace(owner, **{name: value})
    return changed if owner is record else dataclasses.replace(record, batch=changed)


@pytest.mark.parametrize("name", ["gradient", "low", "high", "log_probs", "old_log_probs", "advantages"])
@pytest.mark.parametrize("by", [1e-6, 0.01])
def test_one_changed_number_is_found_at_its_place(name: str, by: float, tmp_path: Path) -> None:
    recipe = load_recipe("dr_grpo", {"length": 5, "eps_low": 1.0, "eps_high": 9.0})  # nothing is clipped
    record = recorded(recipe, tmp_path / "r")
    row = next(r for r in range(16) if record.batch.response_mask[r].sum() > 2 and record.batch.advantages[r] != 0)
    token = None if name == "advantages" else 1
    outcomes, _ = replays.run_all(tampered(record, name, row, token, by), OURS)
    for outcome in outcomes[:2]:
        what = {"low": "lower bound", "high": "upper bound"}.get(name, "gradient")
        assert outcome.disagrees and outcome.where.startswith(f"{what} at row {row}, token {token or 0}: recorded ")
        assert (outcome.region > 0) == (name in ("low", "high"))
    assert outcomes[2].verdict == "bit-equal"  # ours still agree with each other


def test_both_values_are_shown(tmp_path: Path) -> None:
    record = recorded(load_recipe("grpo"), tmp_path / "r")
    changed = tampered(record, "gradient", 0, 0, 1.0)
    old, new = (float(found.gradient[0, 0]) for found in (record, changed))
    outcome = replays.run_all(changed, ("llm",))[0][0]
    assert outcome.where == f"gradient at row 0, token 0: recorded {new:.9g}, replayed {old:.9g} (1 such)"
    assert outcome.gradient == pytest.approx(1 / new, rel=1e-6)  # against the largest entry of the record


def test_a_changed_objective_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(load_recipe("etr"), tmp_path / "r")
    true_region, true_surrogate = ETR.region, GRPO.surrogate
    monkeypatch.setattr(ETR, "region", lambda *a: Region(*(0.999 * bound for bound in true_region(*a))))
    assert verdicts(record) == {**ALL_EQUAL, "toy": "differs", "llm": "differs"}
    monkeypatch.setattr(ETR, "region", true_region)
    assert verdicts(record) == ALL_EQUAL
    monkeypatch.setattr(ETR, "surrogate", lambda *a: -true_surrogate(*a))
    outcomes, _ = replays.run_all(record, OURS)
    assert outcomes[0].disagrees and outcomes[0].gradient == 2 and outcomes[0].region == 0


def test_a_changed_trainer_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy trainer that took the mean of each micro-batch would differ from the LLM trainer and from the record."""
    record = recorded(load_recipe("dapo"), tmp_path / "r")
    true = Updater.loss_of
    monkeypatch.setattr(Updater, "loss_of", lambda self, whole, n: true(self, whole, n / len(self.parts)))
    assert verdicts(record) == {"toy": "differs", "llm": "bit-equal", "llm against toy": "differs"}


def test_a_host_may_round_and_no_more(tmp_path: Path) -> None:
    recipe = load_recipe("etr")
    update(Recording(tmp_path / "r", recipe, "verl"), prepared_batch(recipe.objective))
    record = load(tmp_path / "r")
    assert "verl adds in another order" in replays.rounding(record)
    largest = int(record.gradient.abs().argmax())
    row, token = divmod(largest, record.gradient.shape[1])
    size = record.gradient.abs().max().item()
    assert verdicts(tampered(record, "gradient", row, token, 5e-7 * size))["llm"] == "agrees"
    assert verdicts(tampered(record, "gradient", row, token, 3e-6 * size))["llm"] == "differs"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"settings": {"device": "cuda"}}, "recorded on cuda"),
        ({"settings": {"device": "cpu", "scale": 3.0}}, "data-parallel"),
        ({"versions": {"torch": "1.0", "cpu": torch.backends.cpu.get_cpu_capability()}}, "torch was 1.0 and is"),
        ({"versions": {"torch": torch.__version__, "cpu": "NEON"}}, "cpu was NEON"),
    ],
)
def test_bits_are_asked_for_only_where_arithmetic_is_the_same(change: Any, why: str, tmp_path: Path) -> None:
    record = recorded(load_recipe("etr"), tmp_path / "r")
    assert replays.rounding(record) == ""
    assert why in replays.rounding(dataclasses.replace(record, **change))


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, function: Any) -> None:
    """Put a module in the place of `etr.adapters.<name>.replay`."""
    for owner in ("etr.adapters", f"etr.adapters.{name}"):
        monkeypatch.setitem(sys.modules, owner, ModuleType(owner))
    module: Any = ModuleType(f"etr.adapters.{name}.replay")
    module.replay = function
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.parametrize("name", ["verl", "trl"])
def test_hosts_are_called_compared_and_skipped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(load_recipe("grpo"), tmp_path / "r")

    def rounded(given: Recorded, by: float = 1e-7) -> Replay:
        return Replay(given.loss * (1 + by), given.gradient * (1 + by), given.low, given.high * (1 + by))

    stand_in(monkeypatch, name, rounded)
    assert verdicts(record, (name,)) == {name: "agrees"}
    stand_in(monkeypatch, name, lambda given: rounded(given, 1e-5))
    assert verdicts(record, (name,)) == {name: "differs"}

    def refuse(given: Recorded) -> Replay:
        raise InputError(f"{name} has no entropy")

    stand_in(monkeypatch, name, refuse)
    (outcome,), found = replays.run_all(record, (name,))
    assert (outcome.verdict, outcome.where, found) == ("skipped", f"{name} has no entropy", {})


def test_a_missing_host_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(load_recipe("grpo"), tmp_path / "r")
    for missing, words in (
        ("verl", "verl is not installed"),
        ("ray", "verl cannot be imported: No module named 'ray'"),
    ):

        def fail(name: str, missing: str = missing) -> None:
            raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

        monkeypatch.setattr(etr.replays.paths, "importlib", SimpleNamespace(import_module=fail))
        with pytest.raises(InputError, match=words):
            replays.replay("verl", record)


def test_an_unknown_path_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown path 'lm'; did you mean 'llm'"):
        replays.replay("lm", recorded(load_recipe("grpo"), tmp_path / "r"))


def test_the_picture_shows_the_coefficient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(load_recipe("reinforce"), tmp_path / "r")
    found = {path: replays.replay(path, record) for path in OURS}
    axes = replay_figure(record, found).axes[0]
    drawn: list[Any] = [points.get_offsets() for points in axes.collections]
    kept = record.batch.response_mask
    advantages = record.batch.token_advantages.expand_as(kept)[kept]  # REINFORCE: c = A for every token
    assert len(drawn) == 3
    for points in drawn:
        torch.testing.assert_close(torch.tensor(points[:, 1]).float(), advantages, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("etr.replays.picture.MOST", 10)
    fewer: Any = replay_figure(record, found).axes[0].collections[0].get_offsets()
    assert 5 <= len(fewer) <= 10


def test_weights_of_a_mean_per_response(tmp_path: Path) -> None:
    record = recorded(Recipe("g", GRPO()), tmp_path / "r")
    mask: Tensor = record.batch.response_mask
    torch.testing.assert_close(weights(record), (mask / mask.sum(-1, keepdim=True) / 16).double())
