"""Exact distances of two tabular policies over complete sequences, per prompt; the name carries the direction."""

from __future__ import annotations

from torch import Tensor

from etr import exact
from etr.exact import TreeModel


def kl_new_to_old(logits: Tensor, old_logits: Tensor, model: TreeModel) -> Tensor:
    """KL(π ‖ π_old) = E_{y∼π} log π(y)/π_old(y) over complete sequences, nats per sequence, `[*R, P]`."""
    return exact.kl(logits, old_logits, model) * model.horizon


def kl_old_to_new(logits: Tensor, old_logits: Tensor, model: TreeModel) -> Tensor:
    """KL(π_old ‖ π) = E_{y∼π_old} log π_old(y)/π(y) over complete sequences, nats per sequence, `[*R, P]`."""
    return exact.kl(old_logits, logits, model) * model.horizon


def total_variation(logits: Tensor, old_logits: Tensor, model: TreeModel) -> Tensor:
    """TV(π, π_old) = ½ Σ_y |π(y) − π_old(y)| over complete sequences, in [0, 1], `[*R, P]`; TV² ≤ KL/2 (Pinsker)."""
    probs, old = (exact.sequence_log_probs(z, model).exp() for z in (logits, old_logits))
    return (probs - old).abs().sum(-1) / 2
