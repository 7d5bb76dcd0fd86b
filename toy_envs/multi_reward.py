"""A reward of several parts on different scales that cannot all be had at once easily."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from toy_envs import checks
from toy_envs.accepting import Accepting, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel, expected_total
from toy_envs.sampling import powers

PROMPTS, SYMBOLS, LENGTH = 8, 4, 3
PARTS = ("right", "format", "style")


def _preset(*scales: float) -> dict[str, Any]:
    """Six right sequences per prompt that break the format and one that keeps it."""
    mark = SYMBOLS - 1
    plain = draw_accepting(SYMBOLS - 1, LENGTH, [6] * PROMPTS)  # never writes the mark
    marked = draw_accepting(SYMBOLS - 1, LENGTH - 1, [1] * PROMPTS, seed=1)
    accepting = [[*some, (*one[0], mark)] for some, one in zip(plain, marked, strict=True)]
    return {"vocab_size": SYMBOLS, "horizon": LENGTH, "accepting": accepting, "scales": scales}


class MultiReward(SequenceEnv):
    """
    ## Description
    Up to three parts of a reward, each 0 or 1: **right** (the sequence is accepted), **format** (the last
    token is the mark V − 1) and **style** (1 with the share of tokens that are 0 as its probability). In the
    presets six of seven right sequences break the format, so that whoever is content with being right loses
    the rest: a mild conflict. The parts are weighted by their scales.

    ## Action Space
    `Discrete(vocab_size)`: the next token.

    ## Observation Space
    `MultiDiscrete([prompts] + [vocab_size + 1] * horizon)`: the prompt, then the tokens so far; places not
    yet written hold `vocab_size`.

    ## Reward
    Σ scale·part / Σ scale after the last token, in [0, 1]. `model.outcomes` gives the parts. The score counts
    the expected total.

    ## Episode End
    Terminates after `horizon` tokens.

    ## Arguments
    `vocab_size`, `horizon`, `accepting` (one collection of sequences per prompt), `scales` (two or three
    positive numbers, for the parts in their order). Ready-made (8 prompts, 64 sequences): "uneven" (1, 0.1),
    "three" (1, 0.3, 0.1) and "even" (1, 1), where the conflict costs most. Raises ValueError for another
    number of scales.

    ## References
    This project's own.
    """

    QUESTION = "Is a small part of the reward learnt beside a large one?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "uneven": _preset(1.0, 0.1),
        "three": _preset(1.0, 0.3, 0.1),
        "even": _preset(1.0, 1.0),
    }

    def __init__(self, vocab_size: int, horizon: int, accepting: Accepting, scales: tuple[float, ...]) -> None:
        if len(scales) not in (2, 3):
            raise ValueError(f"scales has {len(scales)} numbers; give 2 or 3, for {', '.join(PARTS)}")
        right = accepting_table(vocab_size, horizon, accepting)
        sequences = torch.arange(vocab_size**horizon).unsqueeze(-1) // powers(vocab_size, horizon) % vocab_size
        ends_in_mark = (sequences[:, -1] == vocab_size - 1).double().expand_as(right)
        share_of_zeros = (sequences == 0).double().mean(-1).expand_as(right)
        parts = torch.stack([right, ends_in_mark, share_of_zeros][: len(scales)], 1)
        checks.check_scales(scales, parts)
        total = expected_total(parts, scales)
        super().__init__(ExactModel(vocab_size, horizon, total, components=parts, scales=scales))
