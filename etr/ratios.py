"""Floor 1: log-ratios log π/π_old, `[*R, B, T]`. Inputs are clean (0 on padding); results are 0 on padding."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.batch import Batch

# exp(20) ≈ 5e8 is far outside every region, and still finite in single precision after summing many tokens.
LOG_RATIO_LIMIT = 20.0


def token(batch: Batch) -> Tensor:
    """ℓ_{i,t} = log π(y_t) − log π_old(y_t), clamped to ±20 before any exp()."""
    return (batch.log_probs - batch.old_log_probs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


def sequence(batch: Batch) -> Tensor:
    """log s_i = (1/T_i) Σ_t ℓ_{i,t}, the length-normalised sequence ratio (GSPO, 2507.18071), on each of its tokens."""
    log_ratio = batch.log_probs - batch.old_log_probs
    length = batch.response_mask.sum(-1, keepdim=True).clamp(min=1)
    mean = (log_ratio.sum(-1, keepdim=True) / length).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    return torch.where(batch.response_mask, mean, 0.0)
