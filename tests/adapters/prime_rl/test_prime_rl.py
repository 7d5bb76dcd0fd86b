"""A recipe as prime-rl's custom loss: against our own loss of the whole batch, and against prime-rl's own losses."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import prime_rl_cases as cases
import pytest
import torch
from prime_rl_cases import GROUP, LENGTHS, RECORD, sequences
from torch import Tensor

import etr
from etr.adapters import prime_rl
from etr.batch import Batch, Region
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import load_recipe

REWARDS = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0])


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text("objective: {name: etr, aggregation: token-mean, micro: 0.4}")
    return str(path)


def inputs(number: int, leaf: Tensor | None = None, **more: Any) -> Any:
    case = sequences()
    given = {
        "trainer_logprobs": case["trainer"][number] if leaf is None else leaf,
        "inference_logprobs": case["inference"][number], "ref_logprobs": None,
        "advantages": case["advantages"][number], "loss_mask": case["mask"][number], "loss_weights": None,
    }  # fmt: skip
    return SimpleNamespace(**{**given, **more})


def step(**kwargs: Any) -> tuple[Tensor, list[Tensor]]:
    """prime-rl's rule: the sum over the sequences, divided by the trainable tokens of the step."""
    case = sequences()
    leaves = [x.clone().requires_grad_() for x in case["trainer"]]
    total = sum(prime_rl.loss(inputs(i, leaf), **kwargs).loss for i, leaf in enumerate(leaves))
    total = total / sum(mask.sum() for mask in case["mask"])
    return total.detach(), list(torch.autograd.grad(total, leaves))


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def test_the_recipe_is_the_same_as_on_the_whole_batch_with_true_rewards(recipe: str) -> None:
    case, mine = sequences(), load_recipe(recipe)
    ids = torch.arange(len(LENGTHS)) // GROUP
    leaf = padded(case["trainer"]).requires_grad_()
    batch = etr.Batch(
        leaf, padded(case["inference"]), padded(case["mask"]), mine.advantages(REWARDS, ids),
        group=etr.group_stats(REWARDS, ids), rewards=REWARDS, group_ids=ids,
    )  # fmt: skip
    out = etr.policy_loss(mine.objective, batch)
    (wanted,) = torch.autograd.grad(out.loss, leaf)
    total, found = step(recipe=recipe, group_size=GROUP)
    torch.testing.assert_close(total, out.loss.detach(), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(padded(found), wanted, rtol=1e-5, atol=1e-8)
    assert not torch.equal(out.region.high[0], out.region.high[1])  # group and advantage decide, so both were there


@dataclass(frozen=True)
class Symmetric(Objective):
    """prime-rl's `ipo`: no gradient for a token whose probability moved by more than 0.12 either way."""

    aggregation: str = "token-mean"

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        near = (batch.log_probs.exp() - batch.old_log_probs.exp()).abs() <= 0.12
        return torch.where(near, log_ratio.exp() * batch.token_advantages, 0.0)


@dataclass(frozen=True)
class Raw(Objective):
    aggregation: str = "token-mean"

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return rewards


def kwargs_of(name: str, tmp_path: Path) -> dict[str, Any]:
    if name == "ipo":
        return {"recipe": f"{__name__}:Symmetric", "rewards": "any"}
    path = tmp_path / "dppo.yaml"
    fields = {"name": "dppo_tv", "aggregation": "token-mean", "delta_low": 0.1, "delta_high": 0.15, "cap": 1e9}
    path.write_text(json.dumps({"objective": fields}))
    return {"recipe": str(path), "rewards": "any"}


@pytest.mark.parametrize("name", ["default", "ipo"])
def test_prime_rls_own_losses_have_the_same_gradient(name: str, tmp_path: Path) -> None:
    """Recorded from prime-rl's code (prime_rl_cases.py); its default is DPPO with total variation."""
    recorded = json.loads(RECORD.read_text())[name]["gradient"]
    found = step(**kwargs_of(name, tmp_path))[1]
    clipped = 0
    for ours, theirs in zip(found, recorded, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-7)
        clipped += sum(value == 0 for value in theirs[1:])
    assert clipped > 0


@pytest.mark.skipif("PRIME_RL_LOSS" not in os.environ, reason="needs PRIME_RL_LOSS=path/to/prime_rl/trainer/rl/loss.py")
def test_prime_rl_calls_it(recipe: str) -> None:
    """Its own set-up of a custom loss and its own `compute_loss`, from its file."""
    module = cases.load(os.environ["PRIME_RL_LOSS"])
    config = module.CustomLossConfig(
        import_path="etr.adapters.prime_rl.loss", kwargs={"recipe": recipe, "group_size": GROUP}
    )
    value, gradient = cases.step(module, module.setup_rl_loss_fn(config))
    total, found = step(recipe=recipe, group_size=GROUP)
    assert value == pytest.approx(total.item(), rel=1e-6)
    for ours, theirs in zip(found, gradient, strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-8)
    recorded = json.loads(RECORD.read_text())["default"]
    again = cases.step(module, lambda x: module.default_loss_fn(x, SimpleNamespace(**cases.LOSSES["default"])))
    assert again[0] == pytest.approx(recorded["loss"], rel=1e-6)


def test_weights_masks_and_metrics(recipe: str) -> None:
    kwargs = {"recipe": recipe, "group_size": GROUP}
    plain, nothing = prime_rl.loss(inputs(0), **kwargs), torch.zeros(LENGTHS[0], dtype=torch.bool)
    half = prime_rl.loss(inputs(0, loss_weights=torch.full((LENGTHS[0],), 0.5)), **kwargs)
    torch.testing.assert_close(half.loss, plain.loss / 2)
    empty = prime_rl.loss(inputs(0, loss_mask=nothing), **kwargs)
    assert empty.loss == 0 and empty.metrics.keys() == plain.metrics.keys()
    assert all(torch.isfinite(value) and value.ndim == 0 for value in empty.metrics.values())
    homogeneous = prime_rl.loss(inputs(0, advantages=torch.zeros(LENGTHS[0])), **kwargs)
    assert homogeneous.loss == 0


@pytest.mark.parametrize(
    "kwargs, wanted",
    [
        ({"recipe": "etr", "group_size": 4}, "prime-rl divides by the tokens"),
        ({"recipe": "dapo"}, "group_size is missing"),
        ({"recipe": "dapo", "rewards": "binry"}, "did you mean 'binary'"),
        ({"recipe": "entropy_bonus", "group_size": 4}, "which prime-rl does not have"),
        ({"recipe": "kl_cov", "group_size": 4}, "prime-rl"),
    ],
)
def test_recipes_that_one_sequence_is_not_enough_for_are_refused(kwargs: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        prime_rl.loss(inputs(0), **kwargs)


def test_etr_needs_the_group(recipe: str) -> None:
    with pytest.raises(InputError, match="group statistics"):
        prime_rl.loss(inputs(0), recipe=recipe, rewards="any")


def test_advantages_of_other_rewards_are_noticed(recipe: str) -> None:
    with pytest.raises(InputError, match="is no advantage of 4 rewards"):
        prime_rl.loss(inputs(0, advantages=torch.full((LENGTHS[0],), 0.6)), recipe=recipe, group_size=GROUP)


def test_what_leaves_no_trace_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raw.yaml"
    path.write_text("objective: {name: reinforce, aggregation: token-mean}\ncorrection: {kind: tis}")
    with pytest.raises(InputError, match="leave the correction out"):
        prime_rl.loss(inputs(0), recipe=str(path), group_size=GROUP)
    path = tmp_path / "beyond.yaml"
    path.write_text("objective: {name: grpo, aggregation: token-mean}\nadvantage: batch_whiten")
    with pytest.raises(InputError, match="look beyond the group"):
        prime_rl.loss(inputs(0), recipe=str(path), group_size=GROUP)
    with pytest.raises(InputError, match="all right and all wrong"):
        prime_rl.loss(inputs(0), recipe=f"{__name__}:Raw", group_size=GROUP)
