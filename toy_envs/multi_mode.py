"""Several right answers: which of them does training keep?"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

import torch

from toy_envs.accepting import Accepting, accepting_table
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel

PROMPTS = 8


def draw_modes(
    vocab_size: int, horizon: int, answer_length: int, wordings: Sequence[int], prompts: int, seed: int = 0
) -> list[list[tuple[int, ...]]]:
    """For each prompt `len(wordings)` different final answers, each reached by its number of drawn sequences."""
    rng = random.Random(seed)  # only .random() is used: Python promises that sequence across versions
    answers = list(product(range(vocab_size), repeat=answer_length))
    ways = list(product(range(vocab_size), repeat=horizon - answer_length))
    accepting = []
    for _ in range(prompts):
        right = sorted(answers, key=lambda _: rng.random())[: len(wordings)]
        drawn = [sorted(ways, key=lambda _: rng.random())[:count] for count in wordings]
        accepting.append([way + answer for answer, some in zip(right, drawn, strict=True) for way in some])
    return accepting


def _preset(vocab_size: int, horizon: int, answer_length: int, wordings: Sequence[int]) -> dict[str, Any]:
    accepting = draw_modes(vocab_size, horizon, answer_length, wordings, PROMPTS)
    return {"vocab_size": vocab_size, "horizon": horizon, "accepting": accepting, "answer_length": answer_length}


class MultiMode(SequenceEnv):
    """
    ## Description
    The last tokens of a sequence are its final answer (its cluster), the first ones the way there. Every prompt
    has several right answers, and some are reached by more ways than others. All right answers pay the same, so
    nothing in the reward asks to keep more than one: what is kept shows what the objective does to diversity.

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
    `vocab_size`, `horizon`, `accepting` (one collection of sequences per prompt), `answer_length` (last
    tokens that make the answer). Ready-made, with 8 prompts: "easy" (2 right answers with 3 ways each, 64
    sequences), "medium" (4 with 8, 4, 2 and 1 ways, 256) and "hard" (6 with 16, 8, 4, 2, 1 and 1 ways, 625).
    Raises ValueError for an answer that leaves no way, and as `TokenTree` does.

    ## References
    This project's own.
    """

    QUESTION = "How many of the right answers does a trained policy still give?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": _preset(4, 3, 1, (3, 3)),
        "medium": _preset(4, 4, 2, (8, 4, 2, 1)),
        "hard": _preset(5, 4, 2, (16, 8, 4, 2, 1, 1)),
    }

    def __init__(self, vocab_size: int, horizon: int, accepting: Accepting, answer_length: int = 1) -> None:
        if not 1 <= answer_length <= horizon:
            raise ValueError(f"answer_length is {answer_length}; give 1 to {horizon}, the last tokens of a sequence")
        table = accepting_table(vocab_size, horizon, accepting)
        clusters = torch.arange(table.shape[1]) % vocab_size**answer_length
        super().__init__(ExactModel(vocab_size, horizon, table, clusters=clusters.repeat(len(table), 1)))
