"""Answers of a tabular policy to every prompt, in one round or, where a sampler asks for them, in several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr import exact
from etr.errors import InputError
from etr.samplers import Attempt, Sampler
from toy_envs.model import ExactModel

ROUNDS = 16  # of sampling, before a sampler that never has enough is stopped


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


def restarted(
    sampler: Sampler, model: ExactModel, logits: Tensor, answers: Answers, draw: Tensor, more: Iterator[Tensor]
) -> tuple[Answers, Tensor, Tensor]:
    """The answers when the sampler has enough, the numbers that they were drawn with, and how many tokens were given.

    more: numbers for further rounds. Raises InputError for starts that do not fit, and for more than ROUNDS of them.
    """
    given = torch.zeros_like(answers.tokens[..., 0])
    for number in range(ROUNDS):
        start = sampler.start(_attempt(sampler.needs, number, model, logits, answers, given))
        if start is None:
            return answers, draw, given
        # New numbers: the old ones were looked at, and what failed by them would fail by them again.
        anew, fresh = (start.given > 0).unsqueeze(-1), next(more)
        prefix = start.tokens.expand_as(answers.tokens)[..., :-1]
        try:
            tokens = model.sample(logits, fresh[..., : model.horizon], prefix, given=start.given)
        except ValueError as error:
            raise InputError(f"{type(sampler).__name__}.start: {error}") from None
        draw, tokens = torch.where(anew, fresh, draw), torch.where(anew, tokens, answers.tokens)
        answers, given = verified(model, logits, tokens, draw), torch.where(anew.squeeze(-1), start.given, given)
    raise InputError(
        f"{type(sampler).__name__}.start never has enough: {ROUNDS} rounds of sampling; return None at last"
    )


def _attempt(
    needs: frozenset[str], number: int, model: ExactModel, logits: Tensor, answers: Answers, given: Tensor
) -> Attempt:
    places = answers.places
    entropy = current_columns(needs & {"entropy"}, logits, places).get("entropy")
    hints = model.solutions if "hints" in needs else None
    shown = None if entropy is None else entropy.reshape(places.shape)
    return Attempt(number, answers.tokens, answers.rewards.reshape(given.shape), given, hints, shown)


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
