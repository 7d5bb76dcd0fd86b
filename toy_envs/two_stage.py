"""Look first, answer then: a question earns nothing by itself, but what it tells decides what an answer can earn."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from toy_envs.base import SequenceEnv
from toy_envs.checks import check_probabilities, check_table
from toy_envs.model import ExactModel

PROMPTS, BEST = 8, 0.95


def _preset(vocab_size: int, answer_length: int) -> dict[str, Any]:
    """Accuracies 0.95·(i / (V − 1))² for i = 0 to V − 1 in a drawn order, and drawn keys."""
    rng = random.Random(0)  # only .random() is used: Python promises that sequence across versions
    levels = [BEST * (i / (vocab_size - 1)) ** 2 for i in range(vocab_size)]
    answers = vocab_size**answer_length
    return {
        "accuracy": [sorted(levels, key=lambda _: rng.random()) for _ in range(PROMPTS)],
        "keys": [[int(rng.random() * answers) for _ in range(vocab_size)] for _ in range(PROMPTS)],
        "answer_length": answer_length,
    }


class TwoStage(SequenceEnv):
    """
    ## Description
    A hidden value z is drawn from A equally likely ones. Turn 0 is one token, the question q: it shows z with
    probability `accuracy[p][q]` and otherwise an unrelated value. Turn 1 is the answer: one of A ways to read
    what was seen, of which `keys[p][q]` is right for this question. With z averaged out, the right reading
    succeeds with accuracy + (1 − accuracy)/A, any other with (1 − accuracy)/A. Under a uniform answer every
    question is worth 1/A: a good one pays only once its answer has been learnt.

    ## Action Space
    `Discrete(V)`: the question, then the tokens of the answer.

    ## Observation Space
    `MultiDiscrete([prompts] + [V + 1] * T)`: the prompt, then the tokens so far; places not yet written hold V.
    What the question shows is averaged out and not observed.

    ## Starting State
    A prompt drawn uniformly. `reset(options={"prompt": p, "prefix": [q]})` branches: the question is asked,
    the answer is open.

    ## Reward
    1 after the last token with the probability above, else 0.

    ## Episode End
    Terminates after the answer: T = 1 + `answer_length` tokens. `model.turns` is (0, 1, ...).

    ## Arguments
    `accuracy`: V numbers in [0, 1] per prompt, one for each question; `keys`: the number (in base V) of the right
    reading for each question; `answer_length` 1 or more, A = V^answer_length. Ready-made, with 8 prompts: "easy"
    (4 questions and readings), "medium" (6) and "hard" (5 questions, 25 readings). Raises ValueError for ragged
    lists, an answer of no token, accuracies outside [0, 1] and keys outside the readings.

    ## References
    This project's own.
    """

    QUESTION = "Does a policy learn to ask the question that tells it most?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": _preset(4, 1),
        "medium": _preset(6, 1),
        "hard": _preset(5, 2),
    }

    def __init__(
        self, accuracy: Sequence[Sequence[float]], keys: Sequence[Sequence[int]], answer_length: int = 1
    ) -> None:
        if answer_length < 1:
            raise ValueError(f"answer_length is {answer_length}; give at least one token to answer with")
        sizes = {len(row) for row in [*accuracy, *keys]}
        if len(sizes) != 1 or len(accuracy) != len(keys):
            raise ValueError(
                f"accuracy and keys have {len(accuracy)} and {len(keys)} prompts with {sorted(sizes)} questions; "
                "give every prompt an accuracy and a key for each question"
            )
        vocab_size, answers = sizes.pop(), len(accuracy[0]) ** answer_length
        check_table(len(accuracy), vocab_size, 1 + answer_length)
        self.accuracy = torch.tensor([list(row) for row in accuracy], dtype=torch.float64)
        check_probabilities("accuracy", self.accuracy, (-1, vocab_size))
        right = torch.tensor([list(row) for row in keys])
        if right.dtype != torch.int64 or not bool(((right >= 0) & (right < answers)).all()):
            raise ValueError(f"keys hold numbers of no reading; give whole numbers from 0 to {answers - 1}")
        told = self.accuracy.unsqueeze(-1)
        table = torch.nn.functional.one_hot(right, answers) * told + (1 - told) / answers
        turns = (0, *[1] * answer_length)
        super().__init__(ExactModel(vocab_size, 1 + answer_length, table.flatten(1).clamp(max=1.0), turns=turns))

    @property
    def information_gain(self) -> Tensor:
        """Mutual information of z and what question q shows, in nats, float64 `[P, V]`.

        I = ln A + h ln h + (A − 1) m ln m with h = accuracy + (1 − accuracy)/A, m = (1 − accuracy)/A.
        """
        answers = self.model.success.shape[1] // self.model.vocab_size
        miss = (1 - self.accuracy) / answers
        hit = self.accuracy + miss
        return math.log(answers) + torch.xlogy(hit, hit) + (answers - 1) * torch.xlogy(miss, miss)
