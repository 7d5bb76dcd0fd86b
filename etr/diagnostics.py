"""Floor 2: what happened in an update, as exact sums. One meaning per name, with its unit, in `METRICS`."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.batch import Batch, Mean, Region
from etr.errors import InputError
from etr.groups import GroupStats
from etr.loss import gradient_coefficient
from etr.objective import Objective

METRICS: dict[str, str] = {
    "policy/kl_old_to_new_k3": "KL(π_old ‖ π) estimated by r − 1 − log r [nats/token]",
    "policy/ratio": "mean ratio π/π_old, as the objective sees it",
    "policy/objective": "mean per-token objective, to be maximised",
    "region/width": "upper minus lower bound of the ratio",
    "region/zero_grad_frac": "share of tokens with A ≠ 0 whose gradient coefficient is zero",
    "region/zero_grad_frac_pos": "the same among tokens with A > 0: clipped above",
    "region/zero_grad_frac_neg": "the same among tokens with A < 0: clipped below",
    "group/homogeneous_frac": "share of responses whose whole group got one reward: no signal",
}


def clipped(objective: Objective, batch: Batch) -> dict[str, Mean]:
    """Share of tokens that lost their gradient, overall and by the sign of A (`region/zero_grad_frac*` in `METRICS`).

    A clipped token is one with A ≠ 0 and gradient coefficient 0; a ratio outside the region alone is not enough,
    because a ratio that moved against its advantage keeps its gradient.
    """
    coefficient = gradient_coefficient(objective, batch)
    advantages = batch.token_advantages.expand_as(coefficient)
    zero = (coefficient == 0).to(coefficient.dtype)
    kept = batch.response_mask
    return {
        "region/zero_grad_frac": Mean.of(zero, kept & (advantages != 0)),
        "region/zero_grad_frac_pos": Mean.of(zero, kept & (advantages > 0)),
        "region/zero_grad_frac_neg": Mean.of(zero, kept & (advantages < 0)),
    }


def homogeneous(batch: Batch) -> dict[str, Mean]:
    """Share of responses whose whole group got one reward; InputError for a batch without group statistics."""
    dead = (_group(batch).var == 0).unsqueeze(-1)
    return {"group/homogeneous_frac": Mean.of(dead.double(), torch.ones_like(dead))}


def width_by_success_rate(batch: Batch, region: Region, edges: Tensor) -> Mean:
    """Mean width of the region by success rate of the group, `[*R, bins]`, over responses with a gradient (A ≠ 0).

    edges: `[bins − 1]` ascending inner boundaries of p; a rate on a boundary belongs to the bin below it.
    Raises InputError for a batch without group statistics.
    """
    rates = _group(batch).mean.contiguous()
    mask = batch.response_mask & (batch.token_advantages != 0)
    width = torch.where(mask, region.high - region.low, 0.0).double()
    bins = torch.bucketize(rates, edges.to(rates))
    empty = width.new_zeros(*width.shape[:-2], len(edges) + 1)
    return Mean(
        empty.scatter_add(-1, bins, width.sum(-1)),
        empty.scatter_add(-1, bins, mask.sum(-1).double()),
    )


def _group(batch: Batch) -> GroupStats:
    if batch.group is None:
        raise InputError("this batch has no group statistics; give group=etr.group_stats(rewards, group_ids)")
    return batch.group
