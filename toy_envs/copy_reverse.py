"""Copy a string or write it backwards: the prompt says which, in tokens that a neural policy can read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from toy_envs.accepting import Tokens, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel


def _preset(vocab_size: int, length: int) -> dict[str, Any]:
    return {"vocab_size": vocab_size, "strings": draw_accepting(vocab_size, length, [8])[0]}


class CopyReverse(SequenceEnv):
    """
    ## Description
    The prompt is an instruction and a string of symbols; the answer is the string itself or the string
    backwards. Every string comes with both instructions, so there are two prompts to each: first all that are
    to be copied, then all that are to be reversed. A table of logits learns every prompt by itself; a policy
    that reads the prompt can carry over what it learnt.

    ## Action Space
    `Discrete(vocab_size)`: the next symbol.

    ## Observation Space
    `MultiDiscrete([vocab_size + 2] * (1 + T) + [vocab_size + 1] * T)`: the prompt's tokens (instruction
    V = copy or V + 1 = reverse, then the string), then the answer so far; places not yet written hold V.

    ## Reward
    1 after the last token if the whole answer is right, else 0.

    ## Episode End
    Terminates after T tokens, the length of the string.

    ## Arguments
    `vocab_size`, `strings`: different strings of one length. Ready-made, with 8 strings (16 prompts): "easy"
    (3 of 2 symbols), "medium" (3 of 3) and "hard" (4 of 4). Raises ValueError for strings of different
    lengths, a string that comes twice, and symbols outside the vocabulary.

    ## References
    This project's own; copying as a test of sequence models: Graves et al., Neural Turing Machines (1410.5401).
    """

    QUESTION = "Is writing a string backwards harder to learn than copying it?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "easy": _preset(2, 3),
        "medium": _preset(3, 3),
        "hard": _preset(4, 4),
    }

    def __init__(self, vocab_size: int, strings: Sequence[Tokens]) -> None:
        texts = [tuple(string) for string in strings]
        if len(set(texts)) < len(texts):
            raise ValueError("strings holds one string twice; give different ones")
        horizon = len(texts[0]) if texts else 0
        answers = texts + [text[::-1] for text in texts]
        table = accepting_table(vocab_size, horizon, [[answer] for answer in answers], name="strings")
        copied, reversed_ = ([(vocab_size + task, *text) for text in texts] for task in (0, 1))
        super().__init__(ExactModel(vocab_size, horizon, table, prompt_tokens=torch.tensor(copied + reversed_)))
