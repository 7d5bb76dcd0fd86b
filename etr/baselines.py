"""Floor 1: reward baselines that weigh responses by how much they move the policy."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.groups import Groups


def squared_scores(log_probs: Tensor, full_log_probs: Tensor, mask: Tensor) -> Tensor:
    """‖∇_z log π(y_t)‖² = 1 − 2p_t + Σ_v p_v² of every token, `[*R, B, T]`; z: the logits at its place; 0 on padding.

    log_probs: of the sampled tokens; full_log_probs: of the whole vocabulary, both clean and of the same policy.
    """
    chance = log_probs.exp()
    norm = 1 - 2 * chance + full_log_probs.exp().square().sum(-1)
    return torch.where(mask, norm.clamp(min=0), 0.0)  # ≥ 0 as a square; rounding may say otherwise


def weighted_baseline(rewards: Tensor, weights: Tensor, group_ids: Tensor, leave_one_out: bool = False) -> Tensor:
    """b_i = Σ_j w_j·R_j / Σ_j w_j over the group, or over its other members; their plain mean where all w are 0."""
    groups = Groups(rewards, group_ids)
    value, weight = groups.sum(weights * rewards), groups.sum(weights)
    plain, count = groups.sum(rewards), groups.size
    if leave_one_out:
        mine = weights * rewards
        value, weight, plain, count = value - mine, weight - weights, plain - rewards, count - 1
    some = weight > 1e-12 * groups.sum(weights)  # what is left after taking one's own away may be rounding alone
    return torch.where(some, value / torch.where(some, weight, 1.0), plain / count)


def centred(rewards: Tensor, baseline: Tensor, group_ids: Tensor) -> Tensor:
    """R − b, exactly 0 in groups whose rewards are all equal."""
    return torch.where(Groups(rewards, group_ids).homogeneous(rewards), 0.0, rewards - baseline)
