"""The policy cliff: the best policy jumps where rewards tie, the entropy-regularised one is Lipschitz in the reward.

Source: Xu, "The Policy Cliff", 2507.20150 (statements read in the official README; proofs not). Rewards `[*R, A]` are
those of the arms of a bandit, or `[*R, S, A]` of the states of a small decision process.
"""

from __future__ import annotations

import torch
from torch import Tensor


def effective_reward(rewards: Tensor, weights: Tensor) -> Tensor:
    """R_eff = Σ_k w_k(s)·R_k: what a policy trained on several rewards follows; `[*R, K, A]`, `[*R, K]` -> `[*R, A]`.

    Evidence: verified (README).
    """
    return (weights.unsqueeze(-1) * rewards).sum(-2)


def optimal_policy(rewards: Tensor) -> Tensor:
    """Uniform over the best arms, `[*R, A]`: a selection from the argmax, discontinuous wherever two arms tie."""
    best = (rewards == rewards.amax(-1, keepdim=True)).to(rewards.dtype)
    return best / best.sum(-1, keepdim=True)


def soft_policy(rewards: Tensor, alpha: float) -> Tensor:
    """The maximiser of E r + α·H: π ∝ exp(r/α), `[*R, A]`."""
    return (rewards / alpha).softmax(-1)


def total_variation(policy: Tensor, other: Tensor) -> Tensor:
    """½ Σ_a |π(a) − π'(a)|, `[*R]`."""
    return (policy - other).abs().sum(-1) / 2


def margin(rewards: Tensor) -> Tensor:
    """Distance to the cliff: best minus second-best reward, `[*R]`. No change below half of it moves the argmax."""
    top = rewards.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def lipschitz_bound(change: Tensor, alpha: float, gamma: float = 0.0) -> Tensor:
    """TV(π_r, π_{r+dr}) ≤ ‖dr‖∞ / (2α(1−γ)) for soft-optimal policies, in every state; change: dr `[*R, A]`.

    1/(2α) is the best constant for a bandit: two arms that tie reach it as dr → 0. Evidence: verified (README), the
    constant for γ = 0 by test.
    """
    return change.abs().amax(-1) / (2 * alpha * (1 - gamma))


def soft_policy_process(rewards: Tensor, moves: Tensor, alpha: float, gamma: float, iterations: int = 500) -> Tensor:
    """Soft-optimal policy of a decision process by soft value iteration, `[S, A]`.

    rewards: `[S, A]`; moves: P(s'|s, a), `[S, A, S]`. Q = r + γ Σ_{s'} P·α ln Σ_a exp(Q/α), then π = softmax(Q/α).
    The error shrinks by γ in each iteration.
    """
    action_values = torch.zeros_like(rewards)
    for _ in range(iterations):
        values = alpha * (action_values / alpha).logsumexp(-1)
        action_values = rewards + gamma * moves @ values
    return soft_policy(action_values, alpha)
