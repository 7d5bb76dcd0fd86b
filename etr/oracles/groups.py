"""Every group of G answers to one prompt with its rewards, and how often it comes up: a rollout without chance.

The order of a group changes nothing (a law of every objective), so groups are multisets with multinomial weights:
C(N+G−1, G) of them from N pairs of answer and outcome, instead of N^G ordered groups. An outcome is 0 or 1, or one of
2^K where the reward has K parts.
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
    rewards: in [0, 1], float64 `[N, G]`; probability: float64 `[N]`, sums to 1; answers: the number of each answer
    among all sequences, `[N, G]`; parts: each part of the reward, 0 or 1, float64 `[N, G, K]`, or the reward (K = 1).
    """

    index: Tensor
    rewards: Tensor
    probability: Tensor
    answers: Tensor
    parts: Tensor

    def rows(self, which: slice) -> GroupLaw:
        """Some of the groups, each with its probability."""
        return GroupLaw(**{name: value[which] for name, value in vars(self).items()})


def enumerate_groups(
    logits: Tensor, model: TreeModel, group_size: int, *, prompt: int = 0, verdict: Tensor | None = None
) -> GroupLaw:
    """All groups that the policy `logits` `[P, S, V]` can sample for one prompt.

    P(group) = G!/∏_k c_k! · ∏_k q_k^{c_k} with q the probability of a pair (y, o): π(y) P(o|y), and c its count.
    verdict: P(the verifier says 1), `[P, V**T]`, by default the model's own with its parts, or its success where it has
    none. Raises InputError for a group size below 2, or more than 300 000 groups.
    """
    if group_size < 2:
        raise InputError(f"group_size is {group_size}; give at least 2, a group needs company")
    chance = exact.sequence_log_probs(logits, model)[prompt].exp().detach()  # which groups come up is data
    outcomes, of_each = _outcomes(model, prompt, verdict)
    rewards = (outcomes * _weights(model, outcomes)).sum(-1)
    pairs = (chance.unsqueeze(-1) * of_each).flatten()  # pair number: answer · outcomes + outcome
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
    answers, outcome = members // len(outcomes), members % len(outcomes)
    places = sequence_places(model)[answers]
    return GroupLaw(places, rewards[outcome], log_probability.exp(), answers, outcomes[outcome])


def _outcomes(model: TreeModel, prompt: int, verdict: Tensor | None) -> tuple[Tensor, Tensor]:
    """All outcomes `[2^K, K]` of 0 and 1, and P(outcome | answer), `[V**T, 2^K]`; the parts are independent."""
    table = getattr(model, "components", None) if verdict is None else None
    if table is None:
        table = (getattr(model, "verdict", model.success) if verdict is None else verdict).unsqueeze(1)
    right = table[prompt].double().T.unsqueeze(-2)  # [V**T, 1, K]
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=right.shape[-1])), dtype=torch.float64)
    return outcomes, torch.where(outcomes == 1, right, 1 - right).prod(-1)


def _weights(model: TreeModel, outcomes: Tensor) -> Tensor:
    """The share of each part in the reward, `[K]`."""
    scales = getattr(model, "scales", ()) if outcomes.shape[-1] > 1 else ()
    weights = torch.tensor(scales or (1.0,), dtype=torch.float64)
    return weights / weights.sum()


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
