"""True statistics beside the tokens: made where the whole batch is, read where the loss is."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import cloudpickle
import torch
from tensordict import TensorDict
from verl_batches import SIZE, config, expected, leaf_of, model_output, nested, numbers, rollout, tensor_dict

import etr
from etr.adapters.verl import columns
from etr.adapters.verl_settings import carries, runnable
from etr.errors import InputError

CARRIED = [name for name in etr.list_objectives() if runnable(name) and carries(etr.get(name), True)]
FRACTIONS = torch.tensor([1.0, 0.25, 0, 0.5, 0.7, 1, 0, 1, 0.1, 0.1, 0.1, 0.1])
UIDS = [f"prompt-{i // SIZE}" for i in range(12)]


def driver(batch):
    """The padded tensors that the driving process has of a rollout batch, under verl's names."""
    scores = torch.zeros(batch.response_mask.shape)
    scores[:, 0] = batch.rewards
    names = {"old_log_probs": batch.old_log_probs, "response_mask": batch.response_mask.long(), "rm_scores": scores}
    names |= {"rollout_log_probs": batch.rollout_log_probs, "ref_log_prob": batch.ref_log_probs}
    return TensorDict({**names, "advantages": batch.advantages}, batch_size=12)


@pytest.mark.parametrize("name", ["etr", *CARRIED])
def test_any_rewards_any_split_the_same_loss(name):
    objective = etr.get(name)
    batch = rollout(objective, rewards=None if "binary_rewards" in objective.needs else FRACTIONS)
    loss, gradient = expected(objective, batch)
    made = columns.statistics(objective, driver(batch), UIDS)
    made |= {"rollout_log_probs": batch.rollout_log_probs, "ref_log_prob": batch.ref_log_probs}
    worker = cloudpickle.loads(cloudpickle.dumps(partial(columns.ppo_loss, config=config(objective, columns=True))))
    total, gradients = torch.zeros(()), []
    for part in (slice(0, 5), slice(5, 12)):
        micro = batch.rows(part)
        leaf = leaf_of(micro)
        more = {key: value[part] for key, value in made.items()}
        found, _ = worker(model_output=model_output(leaf, micro), data=tensor_dict(micro, numbers(batch), **more))
        gradients.append(torch.autograd.grad(found, leaf)[0])
        total = total + found.detach()
    assert gradient.abs().max() > 1e-5
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.cat(gradients), gradient, rtol=1e-5, atol=1e-8)


def test_the_registry_route_would_have_refused_them():
    assert {"etr_surprise", "grpo_wide", "adora"} <= set(CARRIED)
    with pytest.raises(InputError, match=r"needs statistics of the whole batch"):
        config(etr.get("etr_surprise"), columns=False)


def test_rewards_out_of_range_are_refused_with_the_reason():
    batch = rollout(etr.get("etr"))
    wide = driver(dataclasses.replace(batch, rewards=3 * batch.rewards))
    with pytest.raises(InputError, match=r"reward 3 at index \[0\] is outside \[0, 1\]"):
        columns.statistics(etr.get("etr"), wide, UIDS)


def test_what_verl_did_not_make_is_named():
    batch = driver(rollout(etr.get("grpo")))
    with pytest.raises(InputError, match=r"objective 'grpo' needs log-probs of a reference policy"):
        columns.statistics(etr.get("grpo", beta=0.1), batch.exclude("ref_log_prob"), UIDS)


class Keys:
    """A rollout batch as the driving process knows it: where its rows are."""

    keys, partition_id = tuple(map(str, range(12))), "train"

    def __len__(self) -> int:
        return 12


class Queue:
    """Stands for the store of columns through which verl's processes exchange a rollout batch."""

    def __init__(self, fields: TensorDict) -> None:
        self.fields = fields

    def kv_batch_get(self, keys, partition_id, select_fields):
        return self.fields.select(*(name for name in select_fields if name in self.fields.keys()))  # noqa: SIM118

    def kv_batch_put(self, keys, partition_id, fields):
        self.fields.update(fields)


def test_the_trainer_puts_them_beside_the_tokens(monkeypatch):
    pytest.importorskip("transfer_queue", reason="TransferQueue is not installed")
    trainer = pytest.importorskip("etr.adapters.verl.trainer", reason="this verl has no v1 trainer")
    from verl.trainer.ppo.v1 import get_trainer_cls

    assert get_trainer_cls("sync") is trainer.ETRTrainerSync
    objective = etr.get("etr_surprise")
    batch = rollout(objective, rewards=FRACTIONS)
    padded = driver(batch)
    fields = {name: nested(padded[name], batch) for name in padded.keys()}  # noqa: SIM118
    fields["uid"] = torch.arange(12) // SIZE
    queue = Queue(TensorDict(fields, batch_size=12))
    monkeypatch.setattr(trainer, "tq", queue)
    monkeypatch.setattr(trainer.PPOTrainerSync, "_compute_advantage", lambda self, batch, metrics: batch)
    made = object.__new__(trainer.ETRTrainerSync)
    made.objective = objective
    made._compute_advantage(Keys(), {})
    torch.testing.assert_close(queue.fields["etr_group_var"], batch.group.var)
    torch.testing.assert_close(queue.fields["etr_column_mean_surprise"], batch.columns["mean_surprise"])


def test_the_trainer_gives_the_workers_the_loss_that_reads_them(monkeypatch):
    trainer = pytest.importorskip("etr.adapters.verl.trainer", reason="this verl has no v1 trainer")
    given = []
    made = object.__new__(trainer.ETRTrainerSync)
    made.actor_rollout_wg = SimpleNamespace(set_loss_fn=given.append)
    made.config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(actor=config(etr.get("etr_surprise"))))
    monkeypatch.setattr(trainer.PPOTrainerSync, "on_init_end", lambda self: None)
    made.on_init_end()
    assert given[0].func is columns.ppo_loss
    assert given[0].keywords["config"].policy_loss.objective() == etr.get("etr_surprise") == made.objective
