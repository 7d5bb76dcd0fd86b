"""Floor 1: distributions over the vocabulary, given as log-probs `[*R, B, T, V]`, and shares of the tokens of a run."""

from __future__ import annotations

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch

LEAST_LOG_PROB = -100.0


def taken(full_log_probs: Tensor, tokens: Tensor) -> Tensor:
    """Log-probs of the sampled tokens, `[*R, B, T]`."""
    return full_log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def table(batch: Batch) -> Tensor:
    """log π_old of the whole vocabulary, `[*R, B, T, V]`: the table of the batch that `prepare` gets, for a column."""
    full = batch.clean().full_log_probs
    assert full is not None  # in the objective's `needs`
    return full.detach()  # the old policy is a constant of the update


def new_and_old(batch: Batch, column: str) -> tuple[Tensor, Tensor]:
    """log π of the moment and log π_old from `table`'s column; probabilities below e⁻¹⁰⁰ count as e⁻¹⁰⁰.

    A token that a policy cannot take has log π = −∞, and 0·∞ would be no number.
    """
    assert batch.full_log_probs is not None  # in the objective's `needs`
    new, old = batch.full_log_probs, batch.columns[column].to(batch.full_log_probs.dtype)
    return new.clamp(min=LEAST_LOG_PROB), old.clamp(min=LEAST_LOG_PROB)


def tempered(full_log_probs: Tensor, temperature: Tensor) -> Tensor:
    """log π^T with π^T ∝ π^{1/T}: flatter than π for T > 1, sharper for T < 1. temperature: `[*R, 1, 1]`."""
    return (full_log_probs / temperature.unsqueeze(-1)).log_softmax(-1)


def tempering(batch: Batch, target: float, hot: float, cold: float) -> Tensor:
    """log π^T(y_t) − log π(y_t) of the sampled tokens, 0 on padding, where T is `hot` if the run's mean entropy is at
    most `target` nats, and `cold` above it. `batch` is clean and whole; π is its policy, so the old one in `prepare`.
    """
    assert batch.full_log_probs is not None and batch.tokens is not None and batch.entropy is not None
    full = batch.full_log_probs
    low_entropy = masked.mean(batch.entropy, batch.response_mask) <= target
    high, low = (torch.as_tensor(value, dtype=full.dtype, device=full.device) for value in (hot, cold))
    there = taken(tempered(full, torch.where(low_entropy, high, low)), batch.tokens)
    return torch.where(batch.response_mask, there - taken(full, batch.tokens), 0.0)


def row_quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """The q-quantile of every response's own kept values, `[*R, B, 1]`."""
    return masked.quantile(values.unsqueeze(-2), mask.unsqueeze(-2), q).squeeze(-2)


def top_share(values: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Bool mask of the ⌈fraction·N⌉ largest of a run's N kept values, and of all that equal the last of them.

    Without the equals it would depend on the order of the responses which of them are taken.
    """
    # A product such as 0.07·100 is a little more than a whole number, and must not be rounded up to the next one.
    count = (fraction * mask.sum(masked.BATCH, keepdim=True).double() - 1e-9).ceil()
    largest = masked.top(values, mask, count)
    return mask & (values >= masked.least(values, largest)) & (count > 0)
