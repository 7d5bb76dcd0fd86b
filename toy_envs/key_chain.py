"""Sparse success: only a whole chain of right tokens opens the lock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from toy_envs.accepting import Tokens, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel

PROMPTS, SYMBOLS = 8, 4


def _preset(length: int) -> dict[str, Any]:
    return {"vocab_size": SYMBOLS, "keys": [keys[0] for keys in draw_accepting(SYMBOLS, length, [1] * PROMPTS)]}


class KeyChain(SequenceEnv):
    """
    ## Description
    Every prompt has one key of k tokens, and nothing but the whole key succeeds: k right tokens in a row. The
    uniform policy succeeds once in V^k tries, so most groups hold no right answer and give no signal.

    ## Action Space
    `Discrete(vocab_size)`: the next token.

    ## Observation Space
    `MultiDiscrete([prompts] + [vocab_size + 1] * k)`: the prompt, then the tokens so far; places not yet
    written hold `vocab_size`.

    ## Reward
    1 after the last token if all k were right, else 0.

    ## Episode End
    Terminates after k tokens.

    ## Arguments
    `vocab_size`, `keys`: one key per prompt, all of one length. Ready-made (8 prompts, 4 symbols): "k2" to
    "k6", with 16 to 4,096 sequences. Raises ValueError for more than 46,656 sequences, keys of different
    lengths and tokens outside the vocabulary.

    ## References
    This project's own, after the deep-exploration tasks of Osband et al., Behaviour Suite (1908.03568).
    """

    QUESTION = "How long may a chain of right tokens be before success is too rare to learn from?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {f"k{length}": _preset(length) for length in range(2, 7)}

    def __init__(self, vocab_size: int, keys: Sequence[Tokens]) -> None:
        horizon = len(keys[0]) if keys else 0
        table = accepting_table(vocab_size, horizon, [[key] for key in keys], name="keys")
        super().__init__(ExactModel(vocab_size, horizon, table))
