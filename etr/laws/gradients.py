"""Laws of one token: what the gradient coefficient and the region must satisfy."""

from __future__ import annotations

import dataclasses

import torch

from etr.laws.base import close, holds, law, loss_and_gradient, random_batch, repeat
from etr.loss import gradient_coefficient, policy_loss, prepared
from etr.objective import Objective


@law
def on_policy(objective: Objective) -> None:
    """1. At π = π_old the gradient coefficient is the advantage."""
    batch = random_batch(objective)
    batch = prepared(objective, dataclasses.replace(batch, log_probs=batch.old_log_probs))
    want = torch.where(batch.response_mask, batch.token_advantages, 0.0)
    close("on-policy, c must equal A", gradient_coefficient(objective, batch), want)


@law
def no_advantage_no_gradient(objective: Objective) -> None:
    """2. A = 0 gives c = 0."""
    batch = prepared(objective, random_batch(objective))
    c = gradient_coefficient(objective, dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages)))
    holds("A = 0 must give c = 0", c == 0, c)


@law
def finite_differences(objective: Objective) -> None:
    """4. The gradient is the derivative of the loss (central differences, float64, away from kinks)."""
    for noise in (0.3, 1e-4):  # the second lies inside even the narrowest region
        batch, step = random_batch(objective, noise=noise), 1e-6
        # One run per shifted token: all differences in a single call.
        size = batch.log_probs.numel()
        shift = (step * torch.eye(size, dtype=torch.float64)).reshape(size, *batch.log_probs.shape)
        many = repeat(batch, size)
        up, down = (
            policy_loss(objective, dataclasses.replace(many, log_probs=many.log_probs + s), check=False).loss
            for s in (shift, -shift)
        )
        difference = ((up - down) / (2 * step)).reshape(batch.log_probs.shape)
        close("gradient against finite differences", loss_and_gradient(objective, batch)[1], difference, 1e-6)


@law
def region_encloses_one(objective: Objective) -> None:
    """5. 0 ≤ low ≤ 1 ≤ high: staying at the old policy is always allowed."""
    region = policy_loss(objective, random_batch(objective)).region
    holds("the lower bound must lie in [0, 1]", (region.low >= 0) & (region.low <= 1), region.low)
    holds("the upper bound must be at least 1", region.high >= 1, region.high)


@law
def pessimistic(objective: Objective) -> None:
    """6. Clipping only lowers the objective: per_token ≤ r·A, also at extreme ratios."""
    for noise in (0.3, 3.0):
        batch = prepared(objective, random_batch(objective, noise=noise))
        out = policy_loss(objective, batch)
        unclipped = out.log_ratio.exp() * batch.token_advantages
        excess = torch.where(batch.response_mask, out.per_token - unclipped, 0.0)
        holds("the objective must not exceed r·A; excess", excess <= 1e-12, excess)


@law
def gradient_follows_advantage(objective: Objective) -> None:
    """7. c never opposes A."""
    for noise in (0.3, 3.0):
        batch = prepared(objective, random_batch(objective, noise=noise))
        c = gradient_coefficient(objective, batch)
        holds("c must not oppose the advantage", c * batch.token_advantages >= 0, c)
