"""Answers of a tabular policy to every prompt, and what is known of their tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from etr import exact
from toy_envs.model import ExactModel


class Answers(NamedTuple):
    """Sampled tokens `[R, P, G, T]`, the place of each in the table (state·V + token), their log π `[R, P·G, T]`,
    and the rewards `[R, P·G]`."""

    tokens: Tensor
    places: Tensor
    log_probs: Tensor
    rewards: Tensor


def answer(model: ExactModel, logits: Tensor, draw: Tensor) -> Answers:
    """Sample and verify; draw: uniforms `[R, P, G, T + noise]`, the last ones decide rewards that are not certain."""
    return verified(model, logits, model.sample(logits, draw[..., : model.horizon], check=False), draw)


def verified(model: ExactModel, logits: Tensor, tokens: Tensor, draw: Tensor) -> Answers:
    """Sampled tokens with all that follows from them; the last numbers of `draw` decide the rewards."""
    rewards = model.verify(tokens, draw[..., model.horizon :], check=False)
    index = model.prefix_states(tokens, check=False) * model.vocab_size + tokens
    return Answers(tokens, index, taken_log_probs(logits, index), rewards.flatten(-2))


def current_columns(
    needs: frozenset[str], logits: Tensor, index: Tensor, top_tokens: Tensor | None = None
) -> dict[str, Any]:
    """What else of the current policy an objective needs at the sampled states: its whole distribution, its entropy,
    its log-probs of `top_tokens` `[R, P·G, T, K]`."""
    if not needs & {"entropy", "full_log_probs", "top_log_probs"}:
        return {}
    full = distributions(logits, index)
    columns = {"full_log_probs": full, "entropy": -(full.exp() * full).sum(-1)}
    if top_tokens is not None:
        columns["top_log_probs"] = full.gather(-1, top_tokens)
    return {name: value for name, value in columns.items() if name in needs}


def distributions(logits: Tensor, index: Tensor) -> Tensor:
    """log π of every token in the sampled states, `[R, P·G, T, V]`."""
    states = (index // logits.shape[-1]).flatten(-2).unsqueeze(-1)
    rows = exact.log_softmax(logits).gather(-2, states.expand(*states.shape[:-1], logits.shape[-1]))
    return rows.reshape(*index.shape, -1).flatten(-4, -3)


def taken_log_probs(logits: Tensor, index: Tensor) -> Tensor:
    """log π of the sampled tokens, `[R, P·G, T]`. logits: `[R, P, S, V]`; index: state·V + token, `[R, P, G, T]`."""
    table = exact.log_softmax(logits).flatten(-2)
    return table.gather(-1, index.flatten(-2)).reshape(index.shape).flatten(-3, -2)
