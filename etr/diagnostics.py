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
    # A run's own.
    "reward": "expected reward: exact in toys, mean over the samples of an LLM",
    "entropy": "entropy over the full distribution [nats/token]; exact in toys, over the sampled tokens of an LLM",
    "kl_new_to_old": "exact KL(π ‖ π_old) of an iteration, toys [nats/token]",
    "kl": "policy/kl_old_to_new_k3 of the last update, LLM",
    "zero_grad_frac": "region/zero_grad_frac of the last update, LLM",
    "length": "mean length of an answer, LLM [tokens]",
    "truncated": "share of answers cut off at the longest length, LLM",
    "grad_norm": "norm of the last update's gradient before it is clipped, LLM",
    "tokens_per_s": "sampled tokens per second of a whole step, LLM",
    "seconds": "duration of a step, LLM [s]",
    "seconds/rollout": "its part for sampling and grading [s]",
    "seconds/update": "its part for old log-probs and the optimiser steps [s]",
    "seconds/sync": "its part for handing weights to the engine, the canary and the observatory [s]",
    "memory": "main memory of the process after a step, LLM [GiB]; growth from step to step is a leak",
    "reward/timeouts": "answers whose grading took too long; they count as wrong",
    "reward/errors": "answers whose grading failed; they count as wrong",
    "group/refilled": "groups that were drawn again because all their rewards were equal",
    "mismatch/mean": "mean distance of log π_rollout, the engine's, from log π_old, on the same weights [nats/token]",
    "mismatch/max": "the largest of it [nats]",
    "mismatch/outside": "share of tokens that it alone carries out of the region: the noise floor of clipping",
    "mismatch/canary": "mean difference of the two on the canary's fixed sequences after the sync [nats/token]",
    # The observatory's: after the update, against the policy before it.
    "entropy/change": "H(π) − H(π_old) in the states that π_old visits, the sum of its cells [nats/token]",
    "entropy/predicted": "its covariance part −Cov(log π_old, r); what is missing is −KL(π ‖ π_old) [nats/token]",
    "entropy/visits": "entropy from visiting other states than π_old, exact, toys [nats/token]",
    "entropy/change_pos": "part of entropy/change from sampled tokens with A > 0 [nats/token]",
    "entropy/change_neg": "part from sampled tokens with A < 0 [nats/token]",
    "entropy/change_zero": "part from sampled tokens with A = 0 [nats/token]",
    "entropy/change_unsampled": "part from tokens that nobody sampled, exact, toys (0 for samples) [nats/token]",
    "entropy/change_clipped": "part from tokens with A ≠ 0 that end without gradient [nats/token]",
    "entropy/change_p0-0.01": "part from tokens with π_old ≤ 0.01, and so on for the other bins [nats/token]",
    "entropy/change_p0.01-0.1": "part from 0.01 < π_old ≤ 0.1 [nats/token]",
    "entropy/change_p0.1-0.5": "part from 0.1 < π_old ≤ 0.5 [nats/token]",
    "entropy/change_p0.5-0.9": "part from 0.5 < π_old ≤ 0.9 [nats/token]",
    "entropy/change_p0.9-1": "part from π_old > 0.9 [nats/token]",
    "region/below": "share of tokens with A ≠ 0 whose ratio ends below its region",
    "region/inside": "the same, inside it",
    "region/above": "the same, above it",
    "policy/effective_share": "effective sample size over sample size, (Σ r)² / (N Σ r²)",
    "gradient/signal": "‖E g‖², estimated; g: gradient of the loss at the sampling policy, by logits (toys) or weights",
    "gradient/noise": "variance of the whole batch's g, E‖g − E g‖², estimated as gradient/signal and in its unit",
    "pass@4": "exact chance that one of 4 answers is right, mean over prompts, toys",
    "pass@16": "the same for 16 answers",
    **{
        f"region/{name}/p{bin_}": f"{meaning} in groups of success rate {bin_}, tokens with A ≠ 0"
        for name, meaning in (("width", "mean width of the region"), ("outside", "share of ratios outside the region"))
        for bin_ in ("0-0.1", "0.1-0.3", "0.3-0.5", "0.5-0.7", "0.7-0.9", "0.9-1")
    },
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


def by_success_rate(batch: Batch, values: Tensor, where: Tensor, edges: Tensor) -> Mean:
    """Mean of `values` by success rate of the group, `[*R, bins]`, over the tokens selected by the bool mask `where`.

    edges: `[bins − 1]` ascending inner boundaries of p; a rate on a boundary belongs to the bin below it.
    Raises InputError for a batch without group statistics.
    """
    rates = _group(batch).mean.contiguous()
    bins = torch.bucketize(rates, edges.to(rates))
    kept = torch.where(where, values, 0.0).double()
    empty = kept.new_zeros(*kept.shape[:-2], len(edges) + 1)
    return Mean(
        empty.scatter_add(-1, bins, kept.sum(-1)),
        empty.scatter_add(-1, bins, where.sum(-1).double()),
    )


def width_by_success_rate(batch: Batch, region: Region, edges: Tensor) -> Mean:
    """`by_success_rate` of the region's width, over responses with a gradient (A ≠ 0)."""
    mask = batch.response_mask & (batch.token_advantages != 0)
    return by_success_rate(batch, region.high - region.low, mask, edges)


def _group(batch: Batch) -> GroupStats:
    if batch.group is None:
        raise InputError("this batch has no group statistics; give group=etr.group_stats(rewards, group_ids)")
    return batch.group
