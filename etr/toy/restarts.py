"""Sampling in the toys under an objective that has a say in it: at another temperature, and in further rounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from etr import exact
from etr.errors import InputError
from etr.samplers import Attempt, Sampler, Start, Tempered
from etr.toy.answers import Answers, current_columns, taken_log_probs, verified
from toy_envs.model import ExactModel

ROUNDS = 16  # of sampling, before a sampler that never has enough is stopped


class Policies(NamedTuple):
    """Logits `[R, P, S, V]` of the policy that is trained, and of the one that samples: the same, or tempered."""

    trained: Tensor
    sampling: Tensor


class Drawn(NamedTuple):
    """Answers with all that is known of their making.

    draw: the numbers that they were drawn with; sampled: log-probs of their tokens under whoever made them,
    `[R, P·G, T]`; given: how many first tokens were given, int64 `[R, P, G]`; masked: how many of these are not trained
    on. Both are None where no sampler had a say.
    """

    answers: Answers
    draw: Tensor
    sampled: Tensor
    given: Tensor | None = None
    masked: Tensor | None = None


def policies(objective: object, model: ExactModel, logits: Tensor, state: Mapping[str, Tensor]) -> Policies:
    """Who samples: the trained policy itself, unless the objective chooses temperatures."""
    if not isinstance(objective, Tempered):
        return Policies(logits, logits)
    temperature = objective.sampling_temperature(state, exact.state_entropy(logits, model))
    return Policies(logits, logits / temperature.unsqueeze(-1).to(logits.dtype))


def restarted(
    sampler: Sampler,
    model: ExactModel,
    logits: Policies,
    drawn: Drawn,
    more: Iterator[Tensor],
    state: Mapping[str, Tensor],
) -> Drawn:
    """The answers when the sampler has enough.

    more: numbers for further rounds. Raises InputError for starts that do not fit, and for more than ROUNDS of them.
    """
    none = torch.zeros_like(drawn.answers.tokens[..., 0])
    drawn = drawn._replace(given=none, masked=none)
    for number in range(ROUNDS):
        start = sampler.start(_attempt(sampler.needs, number, model, logits.trained, drawn, state))
        if start is None:
            return drawn
        try:
            drawn = _again(model, logits, drawn, start, next(more))
        except ValueError as error:
            raise InputError(f"{type(sampler).__name__}.start: {error}") from None
    raise InputError(
        f"{type(sampler).__name__}.start never has enough: {ROUNDS} rounds of sampling; return None at last"
    )


def _again(model: ExactModel, logits: Policies, drawn: Drawn, start: Start, fresh: Tensor) -> Drawn:
    """One more round, with new numbers: the old ones were looked at, and what failed by them would fail again."""
    assert drawn.given is not None and drawn.masked is not None  # set by `restarted`
    old = drawn.answers.tokens
    anew = start.given > 0 if start.anew is None else start.anew
    given = torch.where(anew, start.given, 0)
    width = model.horizon if start.trained else model.horizon - 1  # what is not trained on must leave one to choose
    tokens = model.sample(
        logits.sampling, fresh[..., : model.horizon], start.tokens.expand_as(old)[..., :width], given=given
    )
    chosen = anew.unsqueeze(-1)
    draw, tokens = torch.where(chosen, fresh, drawn.draw), torch.where(chosen, tokens, old)
    answers = verified(model, logits.trained, tokens, draw)
    made = taken_log_probs(logits.sampling, answers.places).reshape(tokens.shape)
    known = answers.log_probs.reshape(tokens.shape) if start.log_probs is None else start.log_probs.to(made.dtype)
    made = torch.where(torch.arange(model.horizon) < given.unsqueeze(-1), known, made)
    sampled = torch.where(chosen, made, drawn.sampled.reshape(tokens.shape)).flatten(-3, -2)
    masked = torch.zeros_like(given) if start.trained else given
    return Drawn(answers, draw, sampled, torch.where(anew, given, drawn.given), torch.where(anew, masked, drawn.masked))


def _attempt(
    needs: frozenset[str], number: int, model: ExactModel, logits: Tensor, drawn: Drawn, state: Mapping[str, Tensor]
) -> Attempt:
    assert drawn.given is not None  # set by `restarted`
    answers, given = drawn.answers, drawn.given
    entropy = current_columns(needs & {"entropy"}, logits, answers.places).get("entropy")
    hints = model.solutions if "hints" in needs else None
    shown = None if entropy is None else entropy.reshape(answers.places.shape)
    return Attempt(number, answers.tokens, answers.rewards.reshape(given.shape), given, hints, shown, state)
