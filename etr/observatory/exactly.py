"""The same split for a toy, where every token of every state is known: nothing is estimated.

A token that was sampled n times carries the weight d(s) π(a|s) / n on each of its samples, so that its exact
contribution is shared out by what its samples said (sign of the advantage, clipped or not). Tokens that nobody sampled
moved only because probabilities add up to 1, or by momentum and shared parameters; they are a cell of their own.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etr import exact
from etr.batch import Batch, Mean
from etr.errors import InputError
from etr.observatory.entropy import SIGNS, EntropySplit, entropy_change, split


def exact_entropy_change(
    batch: Batch, coefficient: Tensor, index: Tensor, old_logits: Tensor, logits: Tensor, model: exact.TreeModel
) -> tuple[EntropySplit, Mean]:
    """Exact entropy change of an update by cell, and the part from visiting other states, `[*R]`; nats per token.

    batch: the samples `[*R, P·G, T]`, of which advantages and mask are read; coefficient: of each of their tokens;
    index: state·V + token of each, `[*R, P, G, T]`; old_logits, logits: the policy before and after, `[*R, P, S, V]`.
    Both parts together are the change of `exact.entropy`, averaged over prompts. Raises InputError if the shapes do not
    fit.
    """
    old, new = exact.log_policy(old_logits, model), exact.log_policy(logits, model)
    if index.shape[:-2] != old.shape[:-2] or index.flatten(-3, -2).shape != batch.log_probs.shape:
        raise InputError(
            f"index has shape {tuple(index.shape)} for a batch {tuple(batch.log_probs.shape)} and logits "
            f"{tuple(old.shape)}; give [..., prompts, group, tokens]"
        )
    visits, new_visits = exact.state_visits(old_logits, model), exact.state_visits(logits, model)
    entropy, new_entropy = (-(table.exp() * table).sum(-1, keepdim=True) for table in (old, new))
    chance = visits.unsqueeze(-1) * old.exp()
    places = index.flatten(-2)  # of each prompt's samples
    drawn = torch.zeros_like(chance).flatten(-2)
    kept = batch.response_mask.reshape(index.shape).flatten(-2)  # given tokens were not drawn
    drawn.scatter_add_(-1, places, kept.to(drawn.dtype))

    def of_samples(table: Tensor) -> Tensor:
        return table.expand_as(chance).flatten(-2).gather(-1, places).reshape(batch.log_probs.shape)

    weights = of_samples(chance) / of_samples(drawn.view_as(chance))
    precise = dataclasses.replace(batch, log_probs=of_samples(new), old_log_probs=of_samples(old))  # it may be float32
    sampled = entropy_change(precise, of_samples(entropy), coefficient, weights)
    unsampled = torch.where(drawn.view_as(chance) == 0, chance, 0.0)
    flat_new, flat_old, flat_entropy, weight = (_flat(x, chance) for x in (new, old, entropy, unsampled))
    sign = torch.full_like(weight, SIGNS.index("unsampled"), dtype=torch.int64)
    rest = split(flat_new, flat_old, flat_entropy, weight, sign, torch.zeros_like(sign, dtype=torch.bool))
    moved = ((new_visits - visits) * new_entropy.squeeze(-1)).sum((-2, -1))
    return sampled + rest, Mean(moved, chance.sum((-3, -2, -1)))


def _flat(table: Tensor, like: Tensor) -> Tensor:
    """A table `[*R, P, S, V]` as responses of one token, `[*R, P·S·V, 1]`."""
    return table.expand_as(like).flatten(-3).unsqueeze(-1)
