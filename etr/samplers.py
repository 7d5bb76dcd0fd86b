"""Floor 1: a sampler has a say in how answers are drawn: anew, behind given tokens, or at another temperature.

An objective that has a method `start`, and "hints" or "resets" in its `needs`, is one:

    sample -> start? -> sample again, from the beginning or behind given tokens -> start? -> ... -> train

Given tokens were not sampled by the policy, so they are masked out of the loss, unless the sampler says that they are
demonstrations (`Start.trained`). The toy trainer does this; a trainer that cannot refuses the objective by its `needs`.

An objective that has a method `sampling_temperature` chooses the temperature; then "rollout_log_probs" are those of the
policy that sampled, and a recipe's `correction` weighs its samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor


class Attempt(NamedTuple):
    """The answers so far, as a sampler sees them: G of T tokens to each of P prompts.

    round: 0 for the first one, which nobody was helped with; tokens: int64 `[*R, P, G, T]`; rewards: `[*R, P, G]`;
    given: how many first tokens of each answer were given, int64 `[*R, P, G]`; hints: a right answer to each prompt,
    int64 `[P, T]`, for objectives that need "hints"; entropy: of the policy at every token, nats, `[*R, P, G, T]`, for
    those that need "entropy"; state: the objective's own, as `init_state` and `prepare` left it.
    """

    round: int
    tokens: Tensor
    rewards: Tensor
    given: Tensor
    hints: Tensor | None
    entropy: Tensor | None
    state: Mapping[str, Tensor]


class Start(NamedTuple):
    """Which answers to draw anew, and behind which first tokens: the first `given` of `tokens`.

    tokens: int64 `[*R, P, G, T]`, or a shape that expands to it; given: int64 `[*R, P, G]`, below T unless `trained`;
    anew: bool `[*R, P, G]`, the answers that are drawn anew, from their beginning where nothing is given; by default
    those with given > 0. The others stay as they are.
    trained: the given tokens stay in the loss, and all T of them may be given. Their number is the column "given" of
    the batch. log_probs: of the given tokens under whoever made them, `[*R, P, G, T]` or a shape that expands to it,
    for "rollout_log_probs"; by default the policy's own.
    """

    tokens: Tensor
    given: Tensor
    anew: Tensor | None = None
    trained: bool = False
    log_probs: Tensor | None = None


@runtime_checkable
class Sampler(Protocol):
    """An objective that has a say in which answers are drawn."""

    @property
    def needs(self) -> frozenset[str]: ...

    def start(self, attempt: Attempt) -> Start | None:
        """What the next round draws, or None if the answers can be trained on. Runs must not mix."""


@runtime_checkable
class Tempered(Protocol):
    """An objective that chooses the sampling temperature."""

    def sampling_temperature(self, state: Mapping[str, Tensor], entropy: Tensor) -> Tensor:
        """Temperatures that broadcast against `entropy`: the policy's, in nats, wherever a token is to be drawn,
        `[*R, P, states]` in a table. Runs must not mix."""
