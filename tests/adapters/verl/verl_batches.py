"""Batches as verl's workers hold them: nested tensors of whole sequences, with the batch's numbers beside them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig

import etr
from etr.adapters.verl import ETRPolicyLossConfig
from etr.adapters.verl_settings import carries
from etr.batch import Batch
from etr.loss import prepared
from etr.objective import Objective

GROUPS, SIZE, LENGTH = 3, 4, 7
PROMPTS = torch.tensor([2, 1, 3, 2, 4, 1, 2, 2, 3, 1, 2, 5])  # lengths of the prompts


def rollout(objective: Objective, seed: int = 0, rewards: Tensor | None = None) -> Batch:
    """A whole rollout batch of 12 answers, prepared, whose ratios have moved; right-padded, NaN in the padding."""
    generator = torch.Generator().manual_seed(seed)
    rows = GROUPS * SIZE
    lengths = torch.randint(2, LENGTH + 1, (rows,), generator=generator)
    lengths[0] = LENGTH
    mask = torch.arange(LENGTH) < lengths[:, None]
    old = -2 * torch.rand(rows, LENGTH, generator=generator) - 0.1
    moved = old + 0.4 * torch.randn(rows, LENGTH, generator=generator)
    if rewards is None:
        rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1])
    ids = torch.arange(GROUPS).repeat_interleave(SIZE)
    values = objective.advantage(rewards, ids)[:, None] * mask
    reference, engine = (old + 0.1 * torch.randn(rows, LENGTH, generator=generator) for _ in range(2))
    hidden = [torch.where(mask, x, torch.nan) for x in (moved, old, reference, engine)]
    batch = Batch(
        *hidden[:2],
        mask,
        values,
        group=etr.group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids,
        ref_log_probs=hidden[2],
        rollout_log_probs=hidden[3],
    )
    return prepared(objective, batch)


def expected(objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """Our loss of the whole batch and its gradient `[B, T]`, for comparison."""
    leaf = torch.where(batch.response_mask, batch.log_probs, 0.0).requires_grad_()
    loss = etr.policy_loss(objective, dataclasses.replace(batch, log_probs=leaf)).loss
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def config(objective: Objective, **changes: Any) -> ActorConfig:
    """verl's actor configuration for this objective; changes: of ETRPolicyLossConfig, of `host` as host={...}."""
    scale = (getattr(objective, "length", None) or LENGTH) if "norm" in objective.aggregation else None
    host = {
        "loss_agg_mode": objective.aggregation,
        "loss_scale_factor": scale,
        "rollout_n": SIZE,
        "adv_estimator": f"etr/{objective.name}",
        "kl_in_reward": False,
        "use_kl_loss": False,
        "kl_loss_coef": 0.001,  # verl's default, of no effect without use_kl_loss
        "bypass_mode": False,
    } | changes.pop("host", {})
    fields = {"binary_rewards": True, "columns": carries(objective, True), "fields": dataclasses.asdict(objective)}
    policy_loss = ETRPolicyLossConfig(loss_mode=f"etr/{objective.name}", host=host, **fields | changes)
    return ActorConfig(
        strategy="fsdp",
        rollout_n=SIZE,
        ppo_micro_batch_size_per_gpu=GROUPS * SIZE,
        loss_agg_mode=objective.aggregation,
        loss_scale_factor=scale,
        policy_loss=policy_loss,
    )


def numbers(batch: Batch, ranks: int = 1) -> dict[str, Any]:
    """What verl knows of the whole step."""
    mask = batch.response_mask
    return {"dp_size": ranks, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(mask)}


def nested(values: Tensor, batch: Batch) -> Tensor:
    """`[B, T]` without its padding, as verl stores it."""
    parts = [row[: int(keep.sum())] for row, keep in zip(values, batch.response_mask, strict=True)]
    return torch.nested.as_nested_tensor(parts, layout=torch.jagged)


def tensor_dict(batch: Batch, whole: dict[str, Any], **more: Tensor) -> TensorDict:
    """A micro-batch; more: further tensors `[B, T]` or `[B]`."""
    prompts = [torch.zeros(int(n), dtype=torch.long) for n in PROMPTS[: len(batch.log_probs)]]
    tokens = {"old_log_probs": batch.old_log_probs, "advantages": batch.advantages, **more}
    found = {name: value if value.ndim == 1 else nested(value, batch) for name, value in tokens.items()}
    found["response_mask"] = nested(batch.response_mask.long(), batch)
    found["responses"] = nested(torch.zeros_like(batch.response_mask, dtype=torch.long), batch)
    found["prompts"] = torch.nested.as_nested_tensor(prompts, layout=torch.jagged)
    return tensordict_utils.get_tensordict(found, whole)


def model_output(leaf: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Log-probs of whole sequences, each of the next token, as verl's engine gives them."""
    sequences = []
    for row, keep, prompt in zip(leaf, batch.response_mask, PROMPTS, strict=False):
        before = torch.zeros(int(prompt) - 1)
        sequences.append(torch.cat([before, row[: int(keep.sum())], torch.zeros(1)]))
    return {"log_probs": torch.nested.as_nested_tensor(sequences, layout=torch.jagged)}


def leaf_of(batch: Batch) -> Tensor:
    """The log-probs as a leaf without NaN."""
    return torch.where(batch.response_mask, batch.log_probs, 0.0).requires_grad_()
