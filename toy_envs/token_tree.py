"""Short token sequences with a verifier: language so small that every answer can be enumerated."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from toy_envs.base import ExactEnv
from toy_envs.model import ExactModel

MAX_VOCAB_SIZE = 6
MAX_HORIZON = 6  # 6^6 = 46,656 sequences and 9,331 states per prompt: still exact in milliseconds
Tokens = Sequence[int]


def draw_accepting(vocab_size: int, horizon: int, counts: Iterable[int], seed: int = 0) -> list[list[tuple[int, ...]]]:
    """For each prompt `count` accepting sequences, drawn without replacement; the same on every machine.

    >>> draw_accepting(2, 2, [1, 3])
    [[(1, 1)], [(0, 0), (0, 1), (1, 1)]]
    """
    rng = random.Random(seed)  # only .random() is used: Python promises that sequence across versions
    sequences = list(product(range(vocab_size), repeat=horizon))
    return [sorted(sorted(sequences, key=lambda _: rng.random())[:count]) for count in counts]


def _preset(vocab_size: int, horizon: int, counts: Sequence[int]) -> dict[str, Any]:
    accepting = draw_accepting(vocab_size, horizon, counts)
    return {"vocab_size": vocab_size, "horizon": horizon, "accepting": accepting}


class TokenTree(ExactEnv[NDArray[np.int64]]):
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
    `vocab_size` 2 to 6, `horizon` 1 to 6, `accepting`: one collection of sequences per prompt. Ready-made,
    with 8 prompts each: `TokenTree.from_preset("easy")`; the uniform policy succeeds in 7 to 44 % (easy, 27
    sequences), 0.8 to 25 % (medium, 256) or 0.2 to 6 % (hard, 1,024). Raises ValueError for other sizes, an
    empty collection and sequences of another length or with other tokens.

    ## References
    This project's own. Tabular softmax policies: Sutton & Barto, Reinforcement Learning (2018), chapter 13.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": _preset(3, 3, (12, 10, 8, 6, 5, 4, 3, 2)),
        "medium": _preset(4, 4, (64, 48, 32, 24, 16, 8, 4, 2)),
        "hard": _preset(4, 5, (64, 48, 32, 24, 16, 8, 4, 2)),
    }

    def __init__(self, vocab_size: int, horizon: int, accepting: Sequence[Collection[Tokens]]) -> None:
        if not (2 <= vocab_size <= MAX_VOCAB_SIZE and 1 <= horizon <= MAX_HORIZON):
            raise ValueError(
                f"vocab_size {vocab_size} with horizon {horizon} cannot be enumerated; "
                f"give vocab_size 2 to {MAX_VOCAB_SIZE} and horizon 1 to {MAX_HORIZON}"
            )
        if len(accepting) == 0:
            raise ValueError("accepting is empty; give one collection of sequences per prompt")
        success = torch.zeros([len(accepting)] + [vocab_size] * horizon, dtype=torch.float64)
        for prompt, sequences in enumerate(accepting):
            if len(sequences) == 0:
                raise ValueError(f"prompt {prompt} accepts no sequence; give at least one")
            for tokens in sequences:
                _check_sequence(prompt, tokens, vocab_size, horizon)
                success[prompt, *tokens] = 1.0
        model = ExactModel(vocab_size, horizon, success.flatten(1))
        space = gymnasium.spaces.MultiDiscrete([model.prompts] + [vocab_size + 1] * horizon)
        super().__init__(model, space)

    def _observation(self) -> NDArray[np.int64]:
        unwritten = [self.model.vocab_size] * (self.model.horizon - len(self._tokens))
        return np.array([self._prompt, *self._tokens, *unwritten], dtype=np.int64)


def _check_sequence(prompt: int, tokens: Tokens, vocab_size: int, horizon: int) -> None:
    if len(tokens) != horizon or any(token not in range(vocab_size) for token in tokens):
        raise ValueError(
            f"prompt {prompt} accepts {tuple(tokens)}, which no episode can write; "
            f"give {horizon} tokens from 0 to {vocab_size - 1}"
        )
