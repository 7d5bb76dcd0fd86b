"""The Fisher information of a tabular softmax policy over complete sequences: one block per state, per prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from etr import exact
from etr.exact import TreeModel


def fisher_matrix(logits: Tensor, model: TreeModel) -> Tensor:
    """F_s = d(s) (diag π(·|s) − π(·|s) π(·|s)ᵀ), the blocks of the Fisher matrix, `[*R, P, S, V, V]`.

    F is block-diagonal over states and is the Hessian of KL(π_old ‖ π) at π = π_old, in nats per sequence.
    """
    probs = exact.log_policy(logits, model).exp()
    blocks = torch.diag_embed(probs) - probs.unsqueeze(-1) * probs.unsqueeze(-2)
    return exact.state_visits(logits, model)[..., None, None] * blocks


def fisher_product(logits: Tensor, vector: Tensor, model: TreeModel) -> Tensor:
    """F·v = d(s) π(a|s) (v_{sa} − Σ_b π(b|s) v_{sb}) without the matrix; v and the result `[*R, P, S, V]`."""
    probs = exact.log_policy(logits, model).exp()
    centred = vector - (probs * vector).sum(-1, keepdim=True)
    return exact.state_visits(logits, model).unsqueeze(-1) * probs * centred


def natural_gradient(logits: Tensor, model: TreeModel) -> Tensor:
    """F⁺∇J_p = A(s, a) − (1/V) Σ_b A(s, b), each prompt's own J_p in its own metric, `[*R, P, S, V]`.

    F leaves out shifts of all logits of a state; the pseudo-inverse's answer has mean 0 there. Up to such a shift it is
    the advantage itself (Kakade 2001). A state that is never visited gets the limit, where F⁺ would give 0.
    """
    advantages = exact.advantages(logits, model)
    return advantages - advantages.mean(-1, keepdim=True)
