"""Short token sequences with a verifier: language so small that every answer can be enumerated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from toy_envs.accepting import Accepting, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel


def _preset(vocab_size: int, horizon: int, counts: Sequence[int]) -> dict[str, Any]:
    accepting = draw_accepting(vocab_size, horizon, counts)
    return {"vocab_size": vocab_size, "horizon": horizon, "accepting": accepting}


class TokenTree(SequenceEnv):
    """
    ## Description
    The agent writes T tokens; a verifier accepts a set of sequences per prompt. Like an LLM on a checkable
    task: no reward before the end, right answers are rare, and prompts differ in how rare.

    ## Action Space
    `Discrete(vocab_size)`: the next token.

    ## Observation Space
    `MultiDiscrete([prompts] + [vocab_size + 1] * horizon)`: the prompt, then the tokens so far; places not
    yet written hold `vocab_size`.

    ## Reward
    1 after the last token if the sequence is accepted, else 0.

    ## Episode End
    Terminates after `horizon` tokens.

    ## Arguments
    `vocab_size`, `horizon`, `accepting`: one collection of sequences per prompt. Ready-made, with 8 prompts
    each: `TokenTree.from_preset("easy")`; the uniform policy succeeds in 7 to 44 % (easy, 27 sequences),
    0.8 to 25 % (medium, 256) or 0.2 to 6 % (hard, 1,024). Raises ValueError for more than 46,656 sequences, an
    empty collection and sequences of another length or with other tokens.

    ## References
    This project's own. Tabular softmax policies: Sutton & Barto, Reinforcement Learning (2018), chapter 13.
    """

    QUESTION = "How rare may right answers be before an objective finds nothing to learn from?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": _preset(3, 3, (12, 10, 8, 6, 5, 4, 3, 2)),
        "medium": _preset(4, 4, (64, 48, 32, 24, 16, 8, 4, 2)),
        "hard": _preset(4, 5, (64, 48, 32, 24, 16, 8, 4, 2)),
    }

    def __init__(self, vocab_size: int, horizon: int, accepting: Accepting) -> None:
        super().__init__(ExactModel(vocab_size, horizon, accepting_table(vocab_size, horizon, accepting)))
