"""Every objective's loss and gradient against the shortest hand-written PPO loss on the same batch."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.bench import median_ratio, paired, timed
from etr.laws import random_batch
from etr.loss import policy_loss
from etr.objective import Objective
from etr.registry import get, list_objectives

HAS = {"group", "ref_log_probs", "rollout_log_probs", "entropy"}


def bench_loss(rows: int = 64, tokens: int = 1024, repeats: int = 7) -> list[dict[str, float | str]]:
    """Milliseconds of forward and backward for each objective, and the ratio to the hand-written loss.

    Of those that need no more than the batch of `llm_sized` has.
    """
    names = [name for name in list_objectives() if get(name).needs <= HAS]
    batches = {name: llm_sized(get(name), rows, tokens) for name in names}
    candidates = {name: lambda name=name: objective_step(get(name), batches[name]) for name in batches}
    everyone = {"hand-written": lambda: hand_written_step(batches["ppo"]), **candidates}
    seconds = paired({name: timed(step) for name, step in everyone.items()}, repeats)
    return [
        {
            "objective": name,
            "milliseconds": 1000 * statistics.median(times),
            "ratio to hand-written": median_ratio(times, seconds["hand-written"]),
        }
        for name, times in seconds.items()
    ]


def llm_sized(objective: Objective, rows: int, tokens: int) -> Batch:
    """A random float32 batch of `rows` responses and `tokens` tokens, tiled from the laws' small one."""
    small = random_batch(objective)
    tall, wide = -(-rows // small.log_probs.shape[0]), -(-tokens // small.log_probs.shape[1])

    def tile(x: Tensor) -> Tensor:
        repeats = (tall, wide) if x.ndim == 2 else (tall,)
        tiled = x.repeat(*repeats)[:rows]
        tiled = tiled[:, :tokens] if x.ndim == 2 else tiled
        return tiled.float() if tiled.is_floating_point() else tiled

    group = small.group and dataclasses.replace(small.group, **{k: tile(v) for k, v in vars(small.group).items()})
    names = ("log_probs", "old_log_probs", "response_mask", "advantages", "ref_log_probs", "rollout_log_probs")
    tensors: dict[str, Any] = {n: tile(getattr(small, n)) for n in names}
    return Batch(**tensors, group=group, entropy=tile(-small.old_log_probs))


def objective_step(objective: Objective, batch: Batch) -> None:
    """Loss and gradient of one objective, as a trainer calls them."""
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf for each measurement
    policy_loss(objective, dataclasses.replace(batch, log_probs=leaf), check=False).loss.backward()


def hand_written_step(batch: Batch) -> None:
    """PPO's loss in five lines, without checks, padding safety, region or metrics: the floor for any library."""
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf for each measurement
    ratio = (leaf - batch.old_log_probs).exp()
    advantages = batch.token_advantages
    surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    (-(surrogate * batch.response_mask).sum() / batch.response_mask.sum()).backward()
