"""verl's own `ppo_loss` with our registered losses: the same number and gradient as `etr.policy_loss`."""

from __future__ import annotations

from itertools import pairwise

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import torch
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss
from verl.workers.config import ActorConfig
from verl.workers.config.actor import PolicyLossConfig
from verl.workers.utils import losses
from verl_batches import config, expected, leaf_of, model_output, numbers, rollout, tensor_dict

import etr
from etr.adapters.verl import columns
from etr.adapters.verl_settings import carries, runnable
from etr.batch import Batch
from etr.errors import InputError
from etr.objective import Objective

SPREAD = [name for name in etr.list_objectives() if runnable(name) and not carries(etr.get(name), True)]
FURTHER = [
    etr.get("etr", micro=0.3, eps_high=0.28),
    etr.get("dr_grpo", length=3000),
    etr.get("grpo", aggregation="seq-mean-token-sum"),
    etr.get("grpo", aggregation="token-mean"),
    etr.get("gspo", eps_low=0.1, eps_high=0.1),
]


def verl(objective: Objective, batch: Batch, part: slice, ranks: int = 1, **more: torch.Tensor):
    """Loss, gradient and metrics of a part of the batch as verl computes them."""
    micro = batch.rows(part)
    leaf = leaf_of(micro)
    data = tensor_dict(micro, numbers(batch, ranks), **more)
    found, metrics = losses.ppo_loss(config(objective), model_output(leaf, micro), data)
    (gradient,) = torch.autograd.grad(found, leaf)
    return found.detach(), gradient, metrics


def test_every_objective_that_needs_no_columns_is_there():
    assert {"etr", "cispo", "gspo", "dapo", "dr_grpo", "grpo"} <= set(SPREAD)
    assert {f"etr/{name}" for name in SPREAD} <= set(POLICY_LOSS_REGISTRY)
    assert not {"etr/bnpo", "etr/m2po", "etr/capo"} & set(POLICY_LOSS_REGISTRY)


@pytest.mark.parametrize("objective", [*map(etr.get, SPREAD), *FURTHER], ids=lambda o: f"{o.name}-{o.aggregation}")
def test_ppo_loss_is_our_loss(objective):
    batch = rollout(objective)
    loss, gradient = expected(objective, batch)
    found, found_gradient, metrics = verl(objective, batch, slice(0, 12))
    assert gradient.abs().max() > 1e-5
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found_gradient, gradient, rtol=1e-5, atol=1e-9)
    assert metrics["actor/pg_loss"].aggregate() == pytest.approx(float(loss), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("objective", [etr.get("etr"), etr.get("dapo"), *FURTHER[1:3]], ids=lambda o: o.aggregation)
def test_it_is_verls_own_aggregation(objective):
    batch = rollout(objective)
    per_token = etr.policy_loss(objective, batch).per_token
    info = {**numbers(batch, 2), "loss_scale_factor": config(objective).loss_scale_factor}
    mask = batch.response_mask
    found = verl(objective, batch, slice(0, 12), ranks=2)[0]
    torch.testing.assert_close(found, agg_loss(-per_token, mask, objective.aggregation, **info), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("objective", [etr.get("etr"), etr.get("dapo"), *FURTHER[1:3]], ids=lambda o: o.aggregation)
@pytest.mark.parametrize("cut", [(0, 5, 12), (0, 1, 2, 12)])
def test_micro_batches_add_up(objective, cut):
    batch = rollout(objective)
    loss, gradient = expected(objective, batch)
    parts = [verl(objective, batch, slice(*ends)) for ends in pairwise(cut)]
    torch.testing.assert_close(sum(p[0] for p in parts), loss, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-5, atol=1e-8)


def test_importance_weights_multiply_each_token():
    objective = etr.get("dapo")
    batch = rollout(objective)
    weights = torch.rand(12, 7, generator=torch.Generator().manual_seed(5))
    info = {**numbers(batch), "loss_scale_factor": None}
    per_token = etr.policy_loss(objective, batch).per_token
    found = verl(objective, batch, slice(0, 12), rollout_is_weights=weights)[0]
    torch.testing.assert_close(found, agg_loss(-per_token * weights, batch.response_mask, "token-mean", **info))


def test_verls_own_clip_agrees_with_ours():
    objective = etr.get("ppo", eps_low=0.2, eps_high=0.2, dual_clip=3.0)  # verl's default c
    batch = rollout(objective)
    ours = verl(objective, batch, slice(0, 12))
    plain = ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=12)
    leaf = leaf_of(batch)
    zeroed = batch.clean()
    found, metrics = losses.ppo_loss(plain, model_output(leaf, batch), tensor_dict(zeroed, numbers(batch)))
    torch.testing.assert_close(ours[0], found.detach(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(ours[1], torch.autograd.grad(found, leaf)[0], rtol=1e-5, atol=1e-8)
    assert ours[2]["actor/ppo_kl"].aggregate() == pytest.approx(metrics["actor/ppo_kl"].aggregate(), rel=1e-5)


def test_metrics_are_numbers_of_this_micro_batch():
    objective = etr.get("grpo", eps_low=0.1, eps_high=0.1)
    batch = rollout(objective)
    _, gradient, metrics = verl(objective, batch, slice(0, 12))
    lost = batch.response_mask & (batch.advantages != 0) & (gradient == 0)
    kept = batch.response_mask.sum()
    share = {"": lost, "_pos": lost & (batch.advantages > 0), "_neg": lost & (batch.advantages < 0)}
    for end, where in share.items():
        assert where.sum() > 0
        assert metrics[f"actor/pg_clipfrac{end}"].aggregate() == pytest.approx(float(where.sum() / kept))
    assert metrics["actor/region/width"].aggregate() == pytest.approx(0.2)
    assert all(name.startswith("actor/") and isinstance(m.aggregate(), float) for name, m in metrics.items())


def test_a_missing_part_is_refused_in_one_sentence():
    objective = etr.get("grpo")
    batch = rollout(objective)
    bare = ActorConfig(
        strategy="fsdp",
        rollout_n=4,
        ppo_micro_batch_size_per_gpu=12,
        policy_loss=PolicyLossConfig(loss_mode="etr/grpo"),
    )
    data, output = tensor_dict(batch, numbers(batch)), model_output(leaf_of(batch), batch)
    with pytest.raises(InputError, match=r"set .*policy_loss._target_=etr.adapters.verl.ETRPolicyLossConfig"):
        losses.ppo_loss(bare, output, data)
    with pytest.raises(InputError, match=r"nothing carries them"):
        losses.ppo_loss(config(objective, columns=True), output, data)
    with pytest.raises(InputError, match=r"no group statistics|carries no columns"):
        columns.ppo_loss(config(objective, columns=True), output, data)
    unknown = {"dp_size": 2, "batch_num_tokens": None, "global_batch_size": None}
    with pytest.raises(InputError, match=r"verl gave no global_batch_size for 2 ranks"):
        losses.ppo_loss(config(objective), output, tensor_dict(batch, unknown))


def test_rewards_that_are_not_binary_are_found_out():
    objective = etr.get("etr")
    batch = rollout(objective, rewards=torch.tensor([1.0, 0.5, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1]))
    with pytest.raises(InputError, match=r"is no advantage of 4 rewards that are 0 or 1"):
        verl(objective, batch, slice(0, 12))
