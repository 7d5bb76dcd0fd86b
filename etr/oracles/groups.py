"""Every group of G answers to one prompt with its 0/1 rewards, and how often it comes up: a rollout without chance.

The order of a group changes nothing (a law of every objective), so groups are multisets with multinomial weights:
C(N+G−1, G) of them from N pairs of answer and reward, instead of N^G ordered groups.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from etr import exact
from etr.errors import InputError
from etr.exact import TreeModel

MOST_GROUPS = 300_000  # about a second and 100 MB for groups of 16


@dataclass(frozen=True, eq=False)
class GroupLaw:
    """The distribution of a group: N possible groups of G answers of T tokens.

    index: state·V + token of every token, `[N, G, T]`, its place in the flattened table of logits `[S·V]`;
    rewards: 0 or 1, float64 `[N, G]`; probability: float64 `[N]`, sums to 1.
    """

    index: Tensor
    rewards: Tensor
    probability: Tensor


def enumerate_groups(
    logits: Tensor, model: TreeModel, group_size: int, *, prompt: int = 0, verdict: Tensor | None = None
) -> GroupLaw:
    """All groups that the policy `logits` `[P, S, V]` can sample for one prompt.

    P(group) = G!/∏_k c_k! · ∏_k q_k^{c_k} with q the probability of a pair (y, r): π(y) P(r|y), and c its count.
    verdict: P(the verifier says 1), `[P, V**T]`, by default the model's own, or its success where it has none.
    Raises InputError for a group size below 2, rewards of several parts, or more than 300 000 groups.
    """
    if group_size < 2:
        raise InputError(f"group_size is {group_size}; give at least 2, a group needs company")
    if getattr(model, "components", None) is not None:
        raise InputError("this environment's rewards have several parts; groups are enumerated for 0/1 rewards only")
    chance = exact.sequence_log_probs(logits, model)[prompt].exp().detach()  # which groups come up is data
    right = (getattr(model, "verdict", model.success) if verdict is None else verdict)[prompt].double()
    pairs = torch.stack([chance * (1 - right), chance * right], -1).flatten()  # pair 2y + r
    kept = pairs.nonzero().squeeze(-1)
    groups = math.comb(len(kept) + group_size - 1, group_size)
    if groups > MOST_GROUPS:
        raise InputError(
            f"{len(kept)} answers with rewards make {groups:,} groups of {group_size}, more than {MOST_GROUPS:,}; "
            "take a smaller group_size, a smaller environment, or rewards that are certain"
        )
    choices = itertools.combinations_with_replacement(range(len(kept)), group_size)
    flat = torch.tensor(list(itertools.chain.from_iterable(choices))).reshape(-1, group_size)
    members = kept[flat]
    counts = torch.zeros(len(flat), len(kept), dtype=torch.float64)
    counts.scatter_add_(-1, flat, torch.ones_like(flat, dtype=torch.float64))
    log_weight = math.lgamma(group_size + 1) - torch.lgamma(counts + 1).sum(-1)
    log_probability = log_weight + pairs[members].log().sum(-1)
    places = sequence_places(model)[members // 2]
    return GroupLaw(places, (members % 2).double(), log_probability.exp())


def sequence_places(model: TreeModel) -> Tensor:
    """state·V + token of every token of every complete sequence, int64 `[V**T, T]`, in the order of `model.success`."""
    vocab, horizon = model.vocab_size, model.horizon
    number = torch.arange(vocab**horizon)
    columns, first_state = [], 0
    for t in range(horizon):
        prefix = number // vocab ** (horizon - t)
        token = number // vocab ** (horizon - t - 1) % vocab
        columns.append((first_state + prefix) * vocab + token)
        first_state += vocab**t
    return torch.stack(columns, -1)
