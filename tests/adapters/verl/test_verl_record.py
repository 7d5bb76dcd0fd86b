"""What verl computed in a run, recorded and computed again by verl's own `ppo_loss` and by ours."""

from __future__ import annotations

import dataclasses

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import torch
from verl.workers.utils import losses
from verl_batches import config, expected, leaf_of, model_output, numbers, rollout, tensor_dict

import etr
from etr.adapters.verl import columns, recording
from etr.adapters.verl.replay import replay
from etr.errors import InputError
from etr.loss import prepared
from etr.recipe import Recipe
from etr.recorded import Recorded, load

SPREAD = [
    *map(etr.get, ("etr", "etr_surprise", "cispo", "dapo", "dr_grpo")),
    etr.get("gspo", eps_low=0.5, eps_high=0.5),  # at its own bounds all these tokens would be clipped
]
named = pytest.mark.parametrize("objective", SPREAD, ids=lambda o: o.name)


def step(objective, batch, file, part, ranks=1):
    """One micro-batch of a run that records; loss and gradient as verl has them."""
    micro = batch.rows(part)
    leaf = leaf_of(micro)
    settings = config(objective, record=str(file))
    data = {**numbers(batch, ranks)}
    if settings.policy_loss.columns:
        data = tensor_dict(micro, data, **columns.of_batch(micro))
        loss, _ = columns.ppo_loss(settings, model_output(leaf, micro), data)
    else:
        loss, _ = losses.ppo_loss(settings, model_output(leaf, micro), tensor_dict(micro, data))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def still(batch):
    """The batch before its first update: all ratios are 1."""
    return dataclasses.replace(batch, log_probs=batch.old_log_probs)


@named
def test_the_first_moved_micro_batch_is_recorded_without_the_ranks_factor(objective, tmp_path):
    file = tmp_path / "first.safetensors"
    batch = rollout(objective)
    step(objective, still(batch), file, slice(0, 6), ranks=2)
    assert load(file).moved == 0
    step(objective, still(batch), file, slice(6, 12), ranks=2)
    assert load(file).batch.advantages.shape[0] == 6  # a second one that shows nothing changes nothing
    loss, gradient = step(objective, batch, file, slice(3, 8), ranks=2)
    step(objective, batch, file, slice(0, 3), ranks=2)
    found = load(file)
    assert found.moved > 0.1 and found.gradient.abs().max() > 0
    torch.testing.assert_close(found.loss, loss / 2)
    width = found.gradient.shape[1]  # verl pads a micro-batch to its own longest answer
    torch.testing.assert_close(found.gradient, gradient[:, :width] / 2)
    assert found.recipe.objective == objective and found.host == "verl" and "verl" in found.versions
    # Ours, from the record alone: the micro-batch's share under the denominator of the whole step.
    leaf = leaf_of(found.batch)
    ours = etr.policy_loss(objective, dataclasses.replace(found.batch, log_probs=leaf), found.denominator)
    torch.testing.assert_close(ours.loss, found.loss, rtol=1e-6, atol=1e-8)
    assert torch.equal(ours.region.low, found.low) and torch.equal(ours.region.high, found.high)


@named
def test_verl_replays_its_own_record(objective, tmp_path):
    file = tmp_path / "first.safetensors"
    step(objective, rollout(objective), file, slice(2, 9), ranks=2)
    found = load(file)
    again = replay(found)
    torch.testing.assert_close(again.loss, found.loss, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(again.gradient, found.gradient, rtol=1e-6, atol=1e-9)
    kept = found.batch.response_mask
    torch.testing.assert_close(again.low[kept], found.low[kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(again.high[kept], found.high[kept], rtol=1e-6, atol=0)


@pytest.mark.parametrize("objective", [*SPREAD, etr.get("grpo", beta=0.1)], ids=lambda o: o.name)
def test_verl_replays_what_another_trainer_recorded(objective):
    weights = torch.rand(12, 7, generator=torch.Generator().manual_seed(5))
    batch = dataclasses.replace(prepared(objective, rollout(objective)), weights=weights)
    loss, gradient = expected(objective, batch)
    out = etr.policy_loss(objective, batch)
    bounds = {"low": out.region.low, "high": out.region.high}
    found = Recorded(
        recipe=Recipe(objective.name, objective),
        batch=batch,
        denominator=objective.denominator(batch.response_mask).double(),
        parts=(slice(0, 5), slice(5, 12)),
        loss=loss,
        gradient=gradient,
        **bounds,
        host="llm",
        settings={},
        loss_hash="",
        versions={},
    )
    again = replay(found)
    torch.testing.assert_close(again.loss, loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(again.gradient, gradient, rtol=1e-6, atol=1e-9)
    other = dataclasses.replace(found, recipe=Recipe("m2po", etr.get("m2po")))
    with pytest.raises(InputError, match="objective 'm2po' does not run in verl"):
        replay(other)


def test_a_micro_batch_that_is_all_clipped_does_not_end_the_search(tmp_path):
    objective, file = etr.get("gspo"), tmp_path / "first.safetensors"
    batch = rollout(objective)
    step(objective, batch, file, slice(3, 8))
    assert load(file).gradient.abs().max() == 0
    near = dataclasses.replace(batch, log_probs=batch.old_log_probs + 2e-4)
    step(objective, near, file, slice(0, 3))
    assert load(file).gradient.abs().max() > 0


def test_only_rank_0_records(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    objective = etr.get("grpo")
    step(objective, rollout(objective), tmp_path / "first.safetensors", slice(0, 12))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    step(objective, rollout(objective), tmp_path / "first.safetensors", slice(0, 12))
    assert load(tmp_path / "first.safetensors").settings["dp_size"] == 1


def test_the_estimator_is_part_of_the_recipe(monkeypatch):
    objective = etr.get("grpo")
    assert recording.recipe_of(objective, "etr/leave_one_out").advantage == "leave_one_out"
    assert recording.recipe_of(objective, "etr/grpo").advantage is None


@pytest.mark.parametrize(("changed", "factor"), [(lambda loss: 3 * loss, 3.0), (lambda loss: -loss, -1.0)])
def test_what_is_done_to_the_loss_behind_ours_is_in_the_record(changed, factor, tmp_path, monkeypatch):
    objective = etr.get("grpo")
    batch, file = rollout(objective), tmp_path / "first.safetensors"
    step(objective, batch, tmp_path / "plain.safetensors", slice(0, 12))
    true = losses.ppo_loss
    with monkeypatch.context() as patch:
        patch.setattr(losses, "ppo_loss", lambda *a, **k: (changed(true(*a, **k)[0]), {}))
        step(objective, batch, file, slice(0, 12))
    found, plain = load(file), load(tmp_path / "plain.safetensors")
    torch.testing.assert_close(found.gradient, factor * plain.gradient)
    assert found.settings["loss_factor"] == factor and plain.settings["loss_factor"] == 1
    torch.testing.assert_close(replay(found).gradient, plain.gradient)  # so a replay says that they differ
