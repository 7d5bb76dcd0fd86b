"""Floor 1: weights with which a mean over all tokens becomes the mean over some of them.

An objective that leaves tokens out after the batch was made cannot take them out of `response_mask`, which also sets
the global denominator. Multiplying the advantages of a token by its weight does the same.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights(kept: Tensor, mask: Tensor, aggregation: str) -> Tensor:
    """Weights `[*R, B, T]` in double precision, 0 where not `kept`; all kept: exactly 1.

    With them the aggregate over `mask` is the one that a batch with `response_mask = kept` would have.
    """
    kept = kept & mask
    rows = _share(mask.any(-1).sum(-1), kept.any(-1).sum(-1))[..., None, None]
    if aggregation in ("token-mean", "local-token-mean"):
        factor = _share(mask.sum((-2, -1)), kept.sum((-2, -1)))[..., None, None]
    elif aggregation == "seq-mean-token-mean":
        factor = rows * _share(mask.sum(-1), kept.sum(-1)).unsqueeze(-1)
    else:  # sums over tokens: only the number of responses is divided by
        factor = rows
    return torch.where(kept, factor, 0.0)


def _share(whole: Tensor, part: Tensor) -> Tensor:
    """whole/part, 0 where there is no part."""
    return torch.where(part > 0, whole / part.clamp(min=1).double(), 0.0)
