"""Variance-reduced policy gradients with one sample per step: N-PG-IGT and (N-)HARPG (Fatkhullin et al., 2302.01734).

RECONSTRUCTED; the updates are the standard ones, rates were not checked. Both ascend J with a moving average d of
gradients, which is biased by old parameters; they remove that bias in different ways:

    N-PG-IGT   d_t = (1−η) d_{t−1} + η g(θ̃_t),   θ̃_t = θ_t + ((1−η)/η)(θ_t − θ_{t−1})      asks further along the way
    HARPG      d_t = (1−η)(d_{t−1} + H(θ̂_t)(θ_t − θ_{t−1})) + η g(θ_t),   θ̂_t = q θ_t + (1−q) θ_{t−1}, q ∼ U[0, 1]
    θ_{t+1} = θ_t + γ d_t/‖d_t‖ (the N of both), or θ_t + γ d_t

Where the gradient is linear, IGT has no bias at all; E_q H(θ̂)(θ_t − θ_{t−1}) = g(θ_t) − g(θ_{t−1}), so HARPG has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from etr import exact
from etr.exact import TreeModel

Field = Callable[[Tensor], Tensor]


class Iterate(NamedTuple):
    """θ_t, θ_{t−1} and d_{t−1}, all of one shape."""

    parameters: Tensor
    before: Tensor
    direction: Tensor


def transported(now: Iterate, eta: float) -> Tensor:
    """θ̃_t, where N-PG-IGT asks for the gradient."""
    return now.parameters + (1 - eta) / eta * (now.parameters - now.before)


def igt_direction(now: Iterate, gradient: Field, eta: float) -> Tensor:
    """d_t of N-PG-IGT from g(θ̃_t) = `gradient(θ̃_t)`, exact or sampled."""
    return (1 - eta) * now.direction + eta * gradient(transported(now, eta))


def harpg_direction(
    now: Iterate, gradient: Field, product: Callable[[Tensor, Tensor], Tensor], eta: float, q: float
) -> Tensor:
    """d_t of HARPG; `product(θ, v)` is H(θ)·v, exact or sampled; q: a number drawn from [0, 1]."""
    between = q * now.parameters + (1 - q) * now.before
    corrected = now.direction + product(between, now.parameters - now.before)
    return (1 - eta) * corrected + eta * gradient(now.parameters)


def step(now: Iterate, direction: Tensor, length: float, normalized: bool = True) -> Iterate:
    """θ_{t+1}: a step of the given length along d_t (of length·‖d_t‖ where not normalized)."""
    scale = direction.norm().clamp(min=1e-300) if normalized else 1.0
    return Iterate(now.parameters + length * direction / scale, now.parameters, direction)


def hessian_product(logits: Tensor, vector: Tensor, model: TreeModel) -> Tensor:
    """∇²J·v of J = mean over prompts of the expected reward, for one table of logits and v `[P, S, V]`."""
    leaf = logits.detach().requires_grad_()  # a fresh leaf: this is a number, not part of a loss
    value = exact.expected_reward(leaf, model).mean()
    (slope,) = torch.autograd.grad(value, leaf, create_graph=True)
    return torch.autograd.grad((slope * vector).sum(), leaf)[0]
