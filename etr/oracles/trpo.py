"""TRPO's step (1502.05477) for a tabular softmax policy, with everything exact: gradient, Fisher matrix, KL, surrogate.

    solve (F + α)x = g by conjugate gradient;   full step  s = √(2δ / xᵀ(F + α)x)·x
    take the first of s, c·s, c²·s, … with mean KL(π_old ‖ π) ≤ δ and a better surrogate, or none of them

F, g and KL are means over prompts, in nats per sequence. This step is the paper's and verified. The objective `trpo` is
the same aim as a penalty, for optimisers that cannot do this, and reconstructed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from etr import exact
from etr.errors import InputError
from etr.exact import TreeModel
from etr.oracles.divergences import kl_old_to_new
from etr.oracles.fisher import fisher_product

POLICY = (-3, -2, -1)  # prompts, states and tokens: one vector of parameters
ROUNDING = 1e-12  # relative; what is smaller is a step of length 0


class Step(NamedTuple):
    """logits: after the step, `[*R, P, S, V]`; taken: was any length accepted, bool `[*R]`; length: share of the full
    step that was taken, 0 if none; kl: mean KL(π_old ‖ π), nats per sequence; gain: of the surrogate. `[*R]` each.
    """

    logits: Tensor
    taken: Tensor
    length: Tensor
    kl: Tensor
    gain: Tensor


def surrogate(logits: Tensor, old_logits: Tensor, model: TreeModel) -> Tensor:
    """Mean over prompts of Σ_s d_old(s) Σ_a π(a|s) A_old(s, a): E_old[Σ_t r_t·A_t], 0 at the old policy, `[*R]`."""
    visits, advantages = exact.state_visits(old_logits, model), exact.advantages(old_logits, model)
    per_state = (exact.log_policy(logits, model).exp() * advantages).sum(-1)
    return (visits * per_state).sum(-1).mean(-1)


def mean_kl(logits: Tensor, old_logits: Tensor, model: TreeModel) -> Tensor:
    """Mean over prompts of KL(π_old ‖ π), nats per sequence, `[*R]`."""
    return kl_old_to_new(logits, old_logits, model).mean(-1)


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], target: Tensor, iterations: int = 10, tolerance: float = ROUNDING
) -> Tensor:
    """x with product(x) = target for a symmetric product ≥ 0, every run on its own; target and x `[*R, P, S, V]`.

    Exact after as many iterations as the matrix has different eigenvalues; a run stops once its squared residual is
    below `tolerance` of its target's.
    """
    found, residual = torch.zeros_like(target), target
    direction, squared = residual, _dot(residual, residual)
    enough = tolerance**2 * squared
    for _ in range(iterations):
        image = product(direction)
        curvature = _dot(direction, image)
        going = (squared > enough) & (curvature > 0)
        rate = torch.where(going, squared / torch.where(going, curvature, 1.0), 0.0)
        found, residual = found + rate * direction, residual - rate * image
        before, squared = squared, _dot(residual, residual)
        direction = residual + torch.where(going, squared / torch.where(going, before, 1.0), 0.0) * direction
    return found


def full_step(
    logits: Tensor, model: TreeModel, delta: float = 0.01, damping: float = 0.1, iterations: int = 10
) -> Tensor:
    """√(2δ / xᵀ(F + α)x)·x with (F + α)x = g, `[*R, P, S, V]`; 0 where the gradient is."""

    def product(vector: Tensor) -> Tensor:
        return fisher_product(logits, vector, model) / prompts + damping * vector

    prompts = model.success.shape[0]
    direction = conjugate_gradient(product, exact.policy_gradient(logits, model), iterations)
    curvature = _dot(direction, product(direction))
    return torch.where(curvature > 0, (2 * delta / torch.where(curvature > 0, curvature, 1.0)).sqrt(), 0.0) * direction


def step(
    logits: Tensor,
    model: TreeModel,
    *,
    delta: float = 0.01,
    damping: float = 0.1,
    iterations: int = 10,
    backtrack: float = 0.8,
    tries: int = 10,
) -> Step:
    """One TRPO step from `logits` `[*R, P, S, V]`, every run with its own line search; defaults as Spinning Up's.

    Raises InputError for a radius, damping, factor or count out of range.
    """
    for name, value, ok in (
        ("delta", delta, delta > 0),
        ("damping", damping, damping >= 0),
        ("backtrack", backtrack, 0 < backtrack < 1),
        ("iterations", iterations, iterations >= 1),
        ("tries", tries, tries >= 1),
    ):
        if not ok:
            raise InputError(f"{name} is {value:g}; give delta > 0, damping >= 0, 0 < backtrack < 1 and counts from 1")
    old = logits.detach().double()  # a step is an update, not something to differentiate
    whole = full_step(old, model, delta, damping, iterations)
    length = torch.zeros_like(old[..., 0, 0, 0])
    for k in range(tries):
        trial = old + backtrack**k * whole
        good = (mean_kl(trial, old, model) <= delta) & (surrogate(trial, old, model) > 0)
        length = torch.where((length == 0) & good, backtrack**k, length)
    new = old + length[..., None, None, None] * whole
    return Step(new, length > 0, length, mean_kl(new, old, model), surrogate(new, old, model))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of two parameter vectors, `[*R, 1, 1, 1]`."""
    return (a * b).sum(POLICY, keepdim=True)
