"""Floor 1: sums over the group of each response, for losses that compare responses under the current policy.

Responses and groups as they come, `[*R, B]`: no value is looked at and no order assumed, so that a compiler can trace
it. A group has to lie in one micro-batch: sums over a part of it are another group's. Time and memory go with B².
"""

from __future__ import annotations

import torch
from torch import Tensor


def group_sum(values: Tensor, group_ids: Tensor) -> Tensor:
    """Sum over the response's own group, `[*R, B]`, on each member.

    >>> group_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([7, 7, 8]))
    tensor([3., 3., 4.])
    """
    return torch.where(_same(group_ids), values.unsqueeze(-2), 0.0).sum(-1)


def group_logsumexp(values: Tensor, group_ids: Tensor, chosen: Tensor) -> Tensor:
    """log Σ exp(values) over the chosen responses of the own group, −∞ where none is chosen."""
    return torch.where(_same(group_ids) & chosen.unsqueeze(-2), values.unsqueeze(-2), -torch.inf).logsumexp(-1)


def _same(group_ids: Tensor) -> Tensor:
    return group_ids.unsqueeze(-1) == group_ids.unsqueeze(-2)
