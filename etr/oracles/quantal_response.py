"""Quantal response: two players who choose softly, at a temperature that is lowered towards Nash's.

Source: Reddi et al., "Robust Adversarial RL via Bounded Rationality Curricula" (QARL), 2311.01642: its idea alone, in a
matrix game; RECONSTRUCTED. With payoff M `[A, B]` for the row player, who maximises, while the column player minimises:

    x ∝ exp(M y/τ_x),   y ∝ exp(−Mᵀ x/τ_y)                       each is the best response with an entropy bonus τ·H

It is the only saddle point of xᵀM y + τ_x H(x) − τ_y H(y); τ → 0 leads to a Nash equilibrium, τ → ∞ to uniform play.
"""

from __future__ import annotations

import torch
from torch import Tensor

from etr.errors import InputError


def quantal_response(
    payoff: Tensor, tau: float, tau_column: float | None = None, iterations: int = 100_000, tolerance: float = 1e-10
) -> tuple[Tensor, Tensor]:
    """(x, y) by damped mirror steps with τ as the pull towards uniform play; float64 `[A]`, `[B]`.

    x ← x^{1−ητ}·exp(η M y) up to a factor, and so for y; it contracts where η ≤ τ/|M|², so small τ take long. It ends
    when ln x and M y/τ_x differ by no more than `tolerance`, and so for y; InputError if `iterations` are not enough.
    """
    payoff = payoff.double()
    row, column = tau, tau if tau_column is None else tau_column
    if not min(row, column) > 0:
        raise InputError(f"the temperature is {min(row, column):g}; give one above 0")
    rate = min(row, column) / (payoff.square().sum() + max(row, column) ** 2)
    x, y = (torch.zeros(n, dtype=torch.float64) for n in payoff.shape)  # logits
    for _ in range(iterations):
        mine, theirs = x.softmax(-1), y.softmax(-1)
        up, down = payoff @ theirs - row * x, -payoff.T @ mine - column * y
        if (gap := max(float(up.abs().amax()) / row, float(down.abs().amax()) / column)) <= tolerance:
            return mine, theirs
        x, y = x + rate * up, y + rate * down
    raise InputError(
        f"after {iterations} steps the answers are still {gap:.2g} off (in logits); raise iterations or the temperature"
    )


def nash_gap(payoff: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """max_a (M y)_a − min_b (xᵀM)_b: what both could gain together by a best response; 0 at a Nash equilibrium."""
    return (payoff.double() @ y).amax() - (x @ payoff.double()).amin()
