"""Floor 1: penalties per token, `[*R, B, T]`, to be minimised; the direction of every KL is in its name."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from etr.errors import InputError, unknown

KINDS = ("k1", "k2", "k3")
_EXPONENT_LIMIT = 20.0


def kl_policy_to_ref(log_probs: Tensor, ref_log_probs: Tensor, kind: Literal["k1", "k2", "k3"] = "k3") -> Tensor:
    """Estimates of KL(π ‖ π_ref) in nats from tokens sampled by π, with d = log π − log π_ref.

    k1 = d (unbiased, may be negative); k2 = d²/2 (biased, small variance); k3 = e^{−d} + d − 1 (unbiased, ≥ 0;
    with d kept within ±20). Source: Schulman, "Approximating KL divergence", 2020. As a loss their gradients differ:
    on-policy only k2's is that of the KL, k1's has mean zero, and k3's is that of KL(π_ref ‖ π).
    Raises InputError for another kind.
    """
    d = log_probs - ref_log_probs
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        # Both terms share the bound: with the exponential alone bounded, + d would push π off the reference.
        d = d.clamp(-_EXPONENT_LIMIT, _EXPONENT_LIMIT)
        return (-d).exp() + d - 1
    raise InputError(unknown("kl kind", kind, KINDS))


kl = kl_policy_to_ref  # the short public name
