"""A record replayed through TRL is what the run computed, and what our own loss computes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: make adapters")

import trl_tiny as tiny

import etr
from etr.adapters.trl.replay import replay
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import Recipe, load_recipe
from etr.recorded import Recorded, load


def recorded(name: str, rows: int = 6, **fields: object) -> Recorded:
    """An update away from its old policy, computed by our own loss with a denominator of more rows than these."""
    torch.manual_seed(0)
    recipe, tokens = load_recipe(name, fields), 5
    mask = torch.arange(tokens) < torch.randint(2, tokens + 1, (rows, 1))
    old = -3 * torch.rand(rows, tokens)
    leaf = (old + 0.3 * torch.randn(rows, tokens)).requires_grad_()
    rewards, ids = torch.tensor([1.0, 0.0, 0.0] * 4)[:rows], torch.arange(rows) // 3
    entropy = torch.rand(rows, tokens)
    batch = etr.Batch(
        leaf, old, mask, recipe.advantages(rewards, ids), group=etr.group_stats(rewards, ids), rewards=rewards,
        group_ids=ids, entropy=entropy, rollout_log_probs=old, ref_log_probs=old - 0.1,
    )  # fmt: skip
    batch, _ = recipe.objective.prepare(batch, recipe.objective.init_state((), torch.device("cpu")))
    denominator = 2 * recipe.objective.denominator(mask)
    out = etr.policy_loss(recipe.objective, batch, denominator)
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    return Recorded(
        recipe, dataclasses.replace(batch, log_probs=leaf.detach()), denominator, (slice(0, rows),), out.loss.detach(),
        gradient, *(bound.detach().clone() for bound in out.region), "ours", {}, "", {},
    )  # fmt: skip


@pytest.mark.parametrize("rows", [3, 6])
@pytest.mark.parametrize("name", ["etr", "dapo", "gspo", "entropy_bonus", "kl_cov"])
def test_trl_computes_what_is_recorded(name: str, rows: int) -> None:
    wanted = recorded(name, rows)
    found = replay(wanted)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.gradient, wanted.gradient, rtol=1e-6, atol=1e-8)
    kept = wanted.batch.response_mask
    assert torch.equal(found.low[kept], wanted.low[kept]) and torch.equal(found.high[kept], wanted.high[kept])
    assert wanted.gradient.abs().max() > 1e-3


def test_another_loss_is_told_apart() -> None:
    wanted = recorded("etr")
    other = dataclasses.replace(wanted, recipe=load_recipe("grpo", {"eps_high": 0.5}))
    assert not torch.allclose(replay(other).gradient, wanted.gradient, rtol=1e-3)


def test_a_run_records_an_update_that_moved(tmp_path: Path) -> None:
    """The gradient is the one autograd gave the run, whose two micro-batches are one step."""
    path = tmp_path / "first_batch.safetensors"
    recipe = load_recipe("etr", {"optimizer.updates": 2})
    tiny.run(recipe, gradient_accumulation_steps=2, max_steps=2, record=path)
    found = load(path)
    batch = found.batch
    moved = (batch.log_probs - batch.old_log_probs).abs()[batch.response_mask]
    assert moved.max() > 1e-3 and len(found.parts) == 2 and found.host == "trl"
    assert found.settings["num_iterations"] == 2
    leaf = batch.log_probs.clone().requires_grad_()
    loss = etr.policy_loss(found.recipe.objective, dataclasses.replace(batch, log_probs=leaf)).loss  # all rows: whole
    assert loss.item() == pytest.approx(found.loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(loss, leaf)[0], found.gradient, rtol=1e-5, atol=1e-8)
    again = replay(found)
    torch.testing.assert_close(again.gradient, found.gradient, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(again.loss, found.loss, rtol=1e-6, atol=1e-9)


def test_a_recipe_that_trl_cannot_serve_is_refused() -> None:
    class Watchful(Objective):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"full_log_probs"})

    with pytest.raises(InputError, match="GRPOTrainer does not have"):
        replay(dataclasses.replace(recorded("etr"), recipe=Recipe("w", Watchful())))
