"""What the laws share: a random batch that has every input, loss and gradient, and comparisons that teach."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch
from etr.groups import group_stats
from etr.loss import policy_loss
from etr.objective import Objective

Law = Callable[[Objective], None]
LAWS: dict[str, Law] = {}


class LawBroken(AssertionError):
    """The message names the law, where it broke, and both numbers."""


def law(function: Law) -> Law:
    """Decorator: add a law under its function's name."""
    LAWS[function.__name__] = function
    return function


def random_batch(objective: Objective, runs: tuple[int, ...] = (), noise: float = 0.3, seed: int = 0) -> Batch:
    """A ragged off-policy batch in float64 with every input: 4 prompts, groups of 4, up to 5 tokens, 0/1 rewards.

    The whole distribution is over 4 tokens, all of them among the likeliest, and entropy is its entropy; log-probs are
    drawn freely beside it.
    """
    rng = torch.Generator().manual_seed(seed)
    rows, tokens = (*runs, 16), (*runs, 16, 5)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    ids = torch.arange(4).repeat_interleave(4).expand(rows)
    rewards = (normal(rows) > 0).double()
    rewards[..., 0::4], rewards[..., 1::4] = 1.0, 0.0  # every group has signal: no law may hold by A = 0 alone
    old = -normal(tokens).abs() - 0.1
    lengths = torch.randint(1, 6, rows, generator=rng)
    batch = Batch(
        log_probs=old + noise * normal(tokens),
        old_log_probs=old,
        response_mask=torch.arange(5) < lengths.unsqueeze(-1),
        advantages=objective.advantage(rewards, ids),
        group=group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids,
        ref_log_probs=old + 0.2 * normal(tokens),
        rollout_log_probs=old + 0.01 * normal(tokens),
    )
    return dataclasses.replace(batch, **_extras(rng, rows, tokens))


def _extras(rng: torch.Generator, rows: tuple[int, ...], tokens: tuple[int, ...]) -> dict[str, Any]:
    """Inputs beyond log-probs, rewards and groups, drawn freely."""
    full = torch.randn((*tokens, 4), generator=rng, dtype=torch.float64).log_softmax(-1)
    top = full.sort(-1, descending=True)
    return {
        "tokens": torch.randint(0, 4, tokens, generator=rng),
        "full_log_probs": full,
        "top_tokens": top.indices,
        "top_log_probs": top.values,
        "influence": torch.rand(tokens, generator=rng, dtype=torch.float64),
        "entropy": -(full.exp() * full).sum(-1),
        "values": torch.rand(tokens, generator=rng, dtype=torch.float64),
        "turns": torch.randint(0, 2, tokens, generator=rng).cumsum(-1),
        "clusters": torch.randint(0, 3, rows, generator=rng),
        "components": torch.randint(0, 2, (*rows, 2), generator=rng).double(),
    }


def loss_and_gradient(objective: Objective, batch: Batch, denominator: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The loss `[*R]` and its gradient with respect to the log-probs `[*R, B, T]`."""
    leaf = batch.log_probs.detach().requires_grad_()  # a fresh leaf to read the gradient from
    loss = policy_loss(objective, dataclasses.replace(batch, log_probs=leaf), denominator, check=False).loss
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def close(name: str, got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    """Raise LawBroken at the entry with the largest difference."""
    gap = (got.double() - want.double()).abs() - tolerance * want.double().abs().clamp(min=1e-3)
    gap = torch.where(torch.isfinite(got), gap, torch.inf)
    worst = int(gap.argmax())
    if float(gap.flatten()[worst]) > 0:
        place = [int(i) for i in torch.unravel_index(torch.tensor(worst), gap.shape)]
        a, b = got.flatten()[worst].item(), want.flatten()[worst].item()
        raise LawBroken(f"{name}: at index {place} it is {a:.8g}, but must be {b:.8g}")


def holds(name: str, ok: Tensor, value: Tensor) -> None:
    """Raise LawBroken at the first entry where `ok` is False."""
    if not bool(ok.all()):
        place = (~ok).nonzero()[0].tolist()
        raise LawBroken(f"{name}: at index {place} the value is {value[tuple(place)].item():.8g}")


def change_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """Apply `change` to every tensor of the batch."""
    tensors: dict[str, Any] = {
        f.name: v for f in dataclasses.fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)
    }
    changed: dict[str, Any] = {k: change(v) for k, v in tensors.items()}
    group = batch.group and dataclasses.replace(batch.group, **{k: change(v) for k, v in vars(batch.group).items()})
    return dataclasses.replace(batch, group=group, **changed)


def repeat(batch: Batch, times: int) -> Batch:
    """`times` copies of the batch along a new run dimension."""
    return change_tensors(batch, lambda x: x.expand(times, *x.shape))


def run(batch: Batch, *index: int) -> Batch:
    """One run out of a stacked batch."""
    return change_tensors(batch, lambda x: x[index])
