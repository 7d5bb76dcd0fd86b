"""Floor 2: the one loss function. A bandit, a token tree and an LLM all call it, and nothing else."""

from __future__ import annotations

import dataclasses
from dataclasses import fields

import torch
from torch import Tensor

from etr import corrections, ratios
from etr.batch import Batch, LossOutput, Region
from etr.errors import InputError
from etr.objective import SAMPLING, Objective


def policy_loss(
    objective: Objective, batch: Batch, denominator: Tensor | float | None = None, *, check: bool = True
) -> LossOutput:
    """loss = −aggregate(per_token) + aggregate(regularizer), to be minimised, per run.

    denominator: None when `batch` is a whole rollout batch; for a micro-batch, `objective.denominator(mask)` of the
    whole, so that the losses of the parts add up to the loss of the whole.
    check: look for NaN and infinity on kept tokens and for missing inputs; trainers that checked the rollout batch
    pass False, because looking at values makes a GPU wait.
    Raises InputError for bad values, missing inputs, or a micro-batch of an unprepared batch-scope objective.
    """
    if check:
        check_batch(objective, batch)
    if check or denominator is None:
        batch = prepared(objective, batch, whole=denominator is None)
    clean = batch.clean()
    log_ratio, region, per_token = evaluate(objective, clean)
    mask, dtype = clean.response_mask, batch.log_probs.dtype
    divisor = objective.denominator(mask) if denominator is None else denominator
    loss = -objective.aggregate(per_token, mask, divisor)
    penalty = objective.regularizer(clean)
    if penalty is not None:
        loss = loss + objective.aggregate(penalty, mask, divisor)
    bounds = Region(*(bound.expand_as(per_token) for bound in region))
    return LossOutput(loss.to(dtype), per_token.to(dtype), log_ratio, bounds, mask, ratios.token(clean))


def gradient_coefficient(objective: Objective, batch: Batch) -> Tensor:
    """c = ∂(objective)/∂ log π(token), `[*R, B, T]`, 0 on padding: before aggregation weights, without regularizers.

    Every objective's update is Σ w·c·∇log π with w from the aggregation. On-policy c = A; a clipped token is one with
    A ≠ 0 and c = 0. The four parts of the Unified Policy Gradient Estimator (2509.04419) can be read off c.
    """
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf: the model's own graph must not be walked
    whole = prepared(objective, dataclasses.replace(batch, log_probs=leaf))
    with torch.enable_grad():
        per_token = evaluate(objective, whole.clean())[2]
        if not per_token.requires_grad:
            return torch.zeros_like(leaf)
        (coefficient,) = torch.autograd.grad(per_token.sum(), leaf)
    return coefficient


def evaluate(objective: Objective, clean: Batch) -> tuple[Tensor, Region, Tensor]:
    """log ratio, region and per-token objective (0 on padding) of a clean, prepared batch."""
    log_ratio = objective.ratio(clean)
    region = objective.region(clean, log_ratio)
    per_token = objective.surrogate(clean, log_ratio, region)
    if clean.weights is not None:
        per_token = per_token * clean.weights
    if (limit := clean.columns.get(corrections.LIMIT)) is not None:
        per_token = torch.where(corrections.near_enough(clean, limit), per_token, 0.0)
    return log_ratio, region, torch.where(clean.response_mask, per_token, 0.0)


def check_batch(objective: Objective, batch: Batch) -> None:
    """Raise InputError unless `batch` has finite values and everything that `objective` needs."""
    batch.require_finite()
    available = {f.name for f in fields(batch) if getattr(batch, f.name) is not None} | SAMPLING
    if batch.group is not None and bool(batch.group.is_binary()):
        available.add("binary_rewards")
    objective.require(available, "this batch")


def prepared(objective: Objective, batch: Batch, whole: bool = True) -> Batch:
    """The batch with the objective's own statistics, taken of it unless it has them; InputError for a part of one."""
    if all(name in batch.columns for name in objective.columns):
        return batch
    if not whole:
        raise InputError(
            f"objective '{objective.name}' takes a statistic over the whole batch; call "
            "`batch, state = objective.prepare(batch, state)` before splitting it into micro-batches"
        )
    state = objective.init_state(batch.log_probs.shape[:-2], batch.log_probs.device)
    with torch.no_grad():  # statistics of the batch are fixed during an update
        return objective.prepare(batch, state)[0]
