"""Floor 1: sums over the group of each response, for losses that compare responses under the current policy.

Responses and groups as they come, `[*R, B]`: no value is looked at and no order assumed, so that a compiler can trace
it. A group has to lie in one micro-batch: sums over a part of it are another group's. Time and memory go with B².
"""

from __future__ import annotations

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch


def responses(batch: Batch, log_ratio: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each response, `[*R, B]`: log-ratio and advantage, means over its tokens, and whether it has any tokens.

    Without gradient, for weights and values. Responses without tokens are in no mean, so a loss should not count them.
    """
    mask = batch.response_mask
    columns = (log_ratio.detach(), batch.token_advantages.expand_as(log_ratio))
    score, advantage = (masked.mean(column, mask, dim=-1).squeeze(-1) for column in columns)
    return score, advantage, mask.any(-1)


def listwise(batch: Batch, coefficient: Tensor, loss: Tensor) -> Tensor:
    """A per-token objective with the gradient coefficient c, `[*R, B, T or 1]`, and the value −loss `[*R, B]`.

    The loss is a group's, so that its derivative would reach the answers of other rows; each has its own share here.
    """
    pull = coefficient * batch.log_probs
    return pull - pull.detach() - loss.unsqueeze(-1)  # 0 of value: the gradient alone


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
