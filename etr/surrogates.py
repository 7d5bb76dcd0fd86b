"""Floor 1: per-token objectives to MAXIMISE, `[*R, B, T]`, from log-ratios, advantages and a region."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.batch import Region


def policy_gradient(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """A · log π: its gradient is the plain policy gradient, whatever policy sampled the tokens."""
    return advantages * log_probs


def pessimistic_clip(log_ratio: Tensor, advantages: Tensor, region: Region, dual_clip: float | None = None) -> Tensor:
    """min(r·A, clip(r, low, high)·A) (PPO, 1707.06347); with dual clip c, at least c·A where A < 0 (1912.09729).

    The gradient is A·r·∇log π, except beyond the bound that A pushes towards, where it is 0 (and beyond log r = ±20).
    """
    ratio = log_ratio.exp()
    surrogate = torch.minimum(ratio * advantages, torch.clamp(ratio, region.low, region.high) * advantages)
    if dual_clip is None:
        return surrogate
    return torch.where(advantages < 0, torch.maximum(surrogate, dual_clip * advantages), surrogate)


def weighted_policy_gradient(log_ratio: Tensor, log_probs: Tensor, advantages: Tensor, region: Region) -> Tensor:
    """sg[clip(r, low, high)] · A · log π (CISPO, 2506.13585): the weight is bounded, no token loses its gradient."""
    weight = torch.clamp(log_ratio.exp(), region.low, region.high).detach()  # a weight, by the paper's stop-gradient
    return weight * advantages * log_probs
