"""Laws of a batch: what must not change when it is padded, permuted, split, stacked or rounded."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from etr.batch import CURRENT, PROBABILITIES, TOKEN_FIELDS, Batch
from etr.laws.base import LawBroken, close, holds, law, loss_and_gradient, random_batch, run
from etr.objective import Objective
from etr.registry import get


@law
def padding_is_inert(objective: Objective) -> None:
    """3. NaN on padding changes no bit of loss or gradient, and neither do weights of one."""
    batch = random_batch(objective)
    batch = dataclasses.replace(batch, advantages=batch.token_advantages.expand_as(batch.log_probs))
    batch = dataclasses.replace(batch, weights=torch.ones_like(batch.log_probs))
    names = (*TOKEN_FIELDS, "advantages")
    spoilt: dict[str, Any] = {n: torch.where(batch.response_mask, getattr(batch, n), torch.nan) for n in names}
    assert batch.full_log_probs is not None  # a random batch has every input
    kept = batch.response_mask.unsqueeze(-1)
    spoilt["full_log_probs"] = torch.where(kept, batch.full_log_probs, torch.nan)
    got = loss_and_gradient(objective, dataclasses.replace(batch, **spoilt))
    wanted = loss_and_gradient(objective, dataclasses.replace(batch, weights=None))
    for what, a, b in zip(("loss", "gradient"), got, wanted, strict=True):
        holds(f"NaN on padding must not change the {what}", a == b, a)


@law
def response_order_is_irrelevant(objective: Objective) -> None:
    """8. Permuting responses permutes the gradient and keeps the loss."""
    batch = random_batch(objective)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    loss, gradient = loss_and_gradient(objective, batch)
    shuffled_loss, shuffled = loss_and_gradient(objective, batch.rows(order))
    close("loss after permuting responses", shuffled_loss, loss)
    close("gradient after permuting responses", shuffled, gradient[order])


@law
def splitting_is_exact(objective: Objective) -> None:
    """9. Micro-batches and ranks with the global denominator add up to the whole batch."""
    batch = random_batch(objective)
    denominator = objective.denominator(batch.response_mask)
    batch, _ = objective.prepare(batch, objective.init_state((), batch.log_probs.device))
    loss, gradient = loss_and_gradient(objective, batch)
    total, parts = torch.zeros_like(loss), torch.zeros_like(gradient)
    for rows in (torch.arange(0, 16, 3), torch.arange(1, 16, 3), torch.arange(2, 16, 3)):
        part_loss, parts[rows] = loss_and_gradient(objective, batch.rows(rows), denominator)
        total += part_loss
    close("sum of micro-batch losses", total, loss)
    close("gradient from micro-batches", parts, gradient)


@law
def equals_its_parent(objective: Objective) -> None:
    """10. At the neutral hyper-parameters, bit-equal to the declared parent."""
    reduction = objective.reduces_to
    if reduction is None:
        return
    fields: dict[str, Any] = dict(reduction.fields)
    neutral = dataclasses.replace(objective, **fields)
    shared = {f.name for f in dataclasses.fields(get(reduction.parent))}
    inherited = {k: v for k, v in dataclasses.asdict(neutral).items() if k in shared}
    parent = get(reduction.parent, **{**inherited, **reduction.parent_fields})
    batch = random_batch(neutral)
    if reduction.single_token:
        first = {n: getattr(batch, n)[..., :1] for n in ("log_probs", "old_log_probs", "ref_log_probs")}
        mask = batch.response_mask[..., :1]
        batch = Batch(**first, response_mask=mask, advantages=batch.advantages, group=batch.group)
    got = loss_and_gradient(neutral, batch)
    for what, a, b in zip(("loss", "gradient"), got, loss_and_gradient(parent, batch), strict=True):
        holds(f"the {what} must be bit-equal to {reduction.parent}'s", a == b, a)


@law
def half_precision(objective: Objective) -> None:
    """11. bfloat16 inputs: dtype kept, and the result is that of the same inputs in single precision."""
    batch = random_batch(objective)
    tensors = {n: getattr(batch, n) for n in ("log_probs", "old_log_probs", "ref_log_probs", "advantages")}
    coarse = dataclasses.replace(batch, **{n: t.bfloat16() for n, t in tensors.items()})
    wide = dataclasses.replace(batch, **{n: t.bfloat16().float() for n, t in tensors.items()})
    (loss, gradient), (want_loss, want) = (
        loss_and_gradient(objective, coarse),
        loss_and_gradient(objective, wide),
    )
    if loss.dtype != torch.bfloat16 or gradient.dtype != torch.bfloat16:
        raise LawBroken(f"bfloat16 went in, but loss is {loss.dtype} and gradient {gradient.dtype}")
    close("bfloat16 loss", loss, want_loss, 2**-8)
    close("bfloat16 gradient", gradient, want, 2**-8)


@law
def runs_do_not_mix(objective: Objective) -> None:
    """12. A stacked batch equals the loop over its runs."""
    batch = random_batch(objective, runs=(2, 3))
    loss, gradient = loss_and_gradient(objective, batch)
    for i in range(2):
        for j in range(3):
            one_loss, one = loss_and_gradient(objective, run(batch, i, j))
            close(f"loss of run ({i}, {j})", loss[i, j], one_loss)
            close(f"gradient of run ({i}, {j})", gradient[i, j], one)


@law
def finite_at_extremes(objective: Objective) -> None:
    """13. Loss and gradient stay finite at log r = ±60, in single precision."""
    for sign in (1.0, -1.0):
        batch = random_batch(objective)
        far = (batch.old_log_probs + 60 * sign).float()
        rest = {n: getattr(batch, n).float() for n in ("old_log_probs", "ref_log_probs", "advantages")}
        loss, gradient = loss_and_gradient(objective, dataclasses.replace(batch, log_probs=far, **rest))
        holds(f"the loss must be finite at log r = {60 * sign:+.0f}", torch.isfinite(loss), loss)
        holds(f"the gradient must be finite at log r = {60 * sign:+.0f}", torch.isfinite(gradient), gradient)


@law
def preparing_reads_what_it_says(objective: Objective) -> None:
    """15. Unless it says that it reads the policy, `prepare` makes the same of a batch whatever the policy is."""
    if objective.reads_policy:
        return
    batch, other = random_batch(objective), random_batch(objective, seed=1)
    policy = {name: getattr(other, name) for name in (*PROBABILITIES, *CURRENT)}
    state = objective.init_state((), batch.log_probs.device)
    made = []
    for given in (batch, dataclasses.replace(batch, **policy)):
        result, after = objective.prepare(given, state)
        made.append({**result.columns, **after, "advantages": result.advantages})
    first, second = made
    for name, value in first.items():
        holds(f"'{name}' must not change with the policy", value == second[name], value)
