"""Floor 1: a sampler lets completions begin behind given tokens: hints from a right answer, or branches of an answer.

An objective that has a method `start`, and "hints" or "resets" in its `needs`, is one:

    sample -> start? -> sample again behind the given tokens -> start? -> ... -> train

Given tokens were not sampled by the policy, so they are masked out of the loss. The toy trainer does this; a trainer
that cannot refuses the objective by its `needs`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Attempt(NamedTuple):
    """The answers so far, as a sampler sees them: G of T tokens to each of P prompts.

    round: 0 for the first one, which nobody was helped with; tokens: int64 `[*R, P, G, T]`; rewards: `[*R, P, G]`;
    given: how many first tokens of each answer were given, int64 `[*R, P, G]`; hints: a right answer to each prompt,
    int64 `[P, T]`, for objectives that need "hints"; entropy: of the policy at every token, nats, `[*R, P, G, T]`, for
    those that need "entropy".
    """

    round: int
    tokens: Tensor
    rewards: Tensor
    given: Tensor
    hints: Tensor | None
    entropy: Tensor | None


class Start(NamedTuple):
    """Where to begin anew: behind the first `given` of `tokens`.

    tokens: int64 `[*R, P, G, T]`, or a shape that expands to it; given: int64 `[*R, P, G]`, below T. Where it is 0 the
    answer stays as it is.
    """

    tokens: Tensor
    given: Tensor


@runtime_checkable
class Sampler(Protocol):
    """An objective that has a say in the sampling."""

    @property
    def needs(self) -> frozenset[str]: ...

    def start(self, attempt: Attempt) -> Start | None:
        """Where the next round begins, or None if the answers can be trained on. Runs must not mix."""
