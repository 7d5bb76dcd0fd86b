"""What a batch from a toy environment can have besides log-probs and advantages: all of it exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from etr import exact
from etr.oracles.critic import state_values
from etr.toy.answers import Answers, distributions
from toy_envs.model import ExactModel

ALWAYS = ("group", "rewards", "group_ids", "tokens", "values", "turns", "clusters", "components", "influence")
POLICIES = ("ref_log_probs", "rollout_log_probs", "entropy", "full_log_probs", "top_log_probs")
TOP = 20  # tokens whose log-probs a rollout engine usually returns


def supplies(model: ExactModel) -> list[str]:
    """The inputs that a batch from this environment can have; names of `etr.objective.NEEDS`."""
    binary = ["binary_rewards"] if model.components is None else []
    sampling = ["hints", "resets"] if model.horizon > 1 else []  # behind a single token there is nothing to complete
    return [*ALWAYS, *POLICIES, *binary, *sampling]


def extras(
    needs: frozenset[str],
    model: ExactModel,
    logits: Tensor,
    answers: Answers,
    group_ids: Tensor,
    noise: Tensor,
    sampled: Tensor,
) -> dict[str, Any]:
    """The inputs that stay the same during the updates on a batch, those in `needs` only.

    Without turns an answer is one turn, without clusters every sequence is an answer of its own, and without components
    the verdict is the only one. sampled: log-probs of the tokens under whoever made them.
    """
    old, tokens = answers.log_probs, answers.tokens
    turns = model.turns or (0,) * model.horizon
    make: dict[str, Callable[[], Tensor]] = {
        "rewards": lambda: answers.rewards,
        "group_ids": lambda: group_ids.expand(answers.rewards.shape),
        "tokens": lambda: tokens.flatten(-3, -2),
        "ref_log_probs": lambda: torch.full_like(old, -math.log(model.vocab_size)),  # the starting policy
        "rollout_log_probs": lambda: sampled,
        "values": lambda: _values(logits, model, answers.places),
        "turns": lambda: torch.tensor(turns).expand(old.shape),
        "clusters": lambda: model.answers(tokens).flatten(-2),
        "components": lambda: model.outcomes(tokens, noise).flatten(-3, -2),
        "influence": lambda: influence(logits, model, tokens).flatten(-3, -2),
        "top_log_probs": lambda: distributions(logits, answers.places).topk(min(TOP, model.vocab_size)).indices,
    }
    names = {"top_log_probs": "top_tokens"}  # the log-probs themselves are the current policy's
    return {names.get(name, name): value() for name, value in make.items() if name in needs}


def _values(logits: Tensor, model: ExactModel, index: Tensor) -> Tensor:
    """V(s) of the sampling policy in each state on the way, `[R, P·G, T]`."""
    states = index // model.vocab_size
    values = state_values(logits, model).gather(-1, states.flatten(-2))
    return values.reshape(states.shape).flatten(-3, -2).to(logits.dtype)


def influence(logits: Tensor, model: ExactModel, tokens: Tensor) -> Tensor:
    """−ln P(same final answer | token t drawn anew from the policy, all others kept) in nats, `[R, P, G, T]`.

    0 where any token would have led to the same answer.
    """
    size, answer = model.vocab_size, model.answers(tokens)
    states = model.prefix_states(tokens).flatten(-2)
    table = exact.log_softmax(logits)
    found = []
    for t in range(model.horizon):
        # Every token in the place of the t-th: [R, P, G·V, T].
        others = tokens.unsqueeze(-2).repeat(*(1,) * (tokens.ndim - 1), size, 1)
        others[..., t] = torch.arange(size)
        same = model.answers(others.flatten(-3, -2)).unflatten(-1, (-1, size)) == answer.unsqueeze(-1)
        at = states.unflatten(-1, tokens.shape[-2:])[..., t]
        rows = table.gather(-2, at.unsqueeze(-1).expand(*at.shape, size))
        found.append(-torch.where(same, rows, -torch.inf).logsumexp(-1))
    return torch.stack(found, -1).clamp(min=0.0)  # where all are the same the sum may round to above 1
