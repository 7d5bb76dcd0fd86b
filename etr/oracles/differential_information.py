"""Differential information: which preferences make DPO's log-ratio reward the right one (Won et al., 2505.23761).

RECONSTRUCTED from the abstract and standard derivations, on a table of V answers. The differential information
distribution (DID) from π_ref to π* is what has to be multiplied in:  q ∝ π*/π_ref,  π* ∝ π_ref·q. If preferences are a
Bradley-Terry model on q^β, P(i ≻ j) = σ(β(ln q_i − ln q_j)), then DPO with the same β has π* as its only minimiser:

    L(π) = −Σ_{i≠j} w_ij P(i ≻ j) ln σ(β(ρ_i − ρ_j)),   ρ = ln π/π_ref          (logits of the two sides are equal)
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_did(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    """ln q with q ∝ π*/π_ref, `[*R, V]`: normalised, so its entropy says how concentrated the new information is."""
    return (log_policy - log_ref).log_softmax(-1)


def preferences(log_q: Tensor, beta: float) -> Tensor:
    """P(i ≻ j) = σ(β(ln q_i − ln q_j)), `[*R, V, V]`: preferences that encode the distribution q."""
    return (beta * (log_q.unsqueeze(-1) - log_q.unsqueeze(-2))).sigmoid()


def pairwise_loss(reward: Tensor, prefers: Tensor) -> Tensor:
    """Mean over pairs i ≠ j, each equally often, of −P(i ≻ j)·ln σ(u_i − u_j) for a reward u `[*R, V]`; `[*R]`."""
    size = reward.shape[-1]
    margin = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    pairs = ~torch.eye(size, dtype=torch.bool, device=reward.device)
    return -torch.where(pairs, prefers * torch.nn.functional.logsigmoid(margin), 0.0).sum((-2, -1)) / (
        size * (size - 1)
    )


def dpo_loss(log_policy: Tensor, log_ref: Tensor, prefers: Tensor, beta: float) -> Tensor:
    """DPO's loss in expectation: `pairwise_loss` of its reward β·ln π/π_ref (2305.18290), `[*R]`."""
    return pairwise_loss(beta * (log_policy - log_ref), prefers)
