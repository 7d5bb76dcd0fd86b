"""A perfect critic: what a policy will earn from each state on."""

from __future__ import annotations

from torch import Tensor

from etr import exact
from etr.exact import TreeModel


def state_values(logits: Tensor, model: TreeModel) -> Tensor:
    """V(s) = Σ_a π(a|s) Q(s, a): expected success after prefix s, following the policy, float64 `[*R, P, S]`."""
    return (exact.log_policy(logits, model).exp() * exact.action_values(logits, model)).sum(-1)
