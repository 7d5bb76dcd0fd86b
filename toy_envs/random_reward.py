"""A verifier that tosses a coin: whatever training does here, it does without a signal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from toy_envs.accepting import Accepting, accepting_table, draw_accepting
from toy_envs.base import SequenceEnv
from toy_envs.model import ExactModel

PROMPTS, ARMS = 16, 8


def _preset(rate: float) -> dict[str, Any]:
    accepting = draw_accepting(ARMS, 1, [1 + prompt % 3 for prompt in range(PROMPTS)])
    return {"vocab_size": ARMS, "horizon": 1, "accepting": accepting, "rate": rate}


class RandomReward(SequenceEnv):
    """
    ## Description
    Every answer is rewarded with the same probability. Beneath it lies a real task (`model.success`) that the
    score counts, so that a policy can be seen to have learnt nothing of it. The expected advantage of every
    answer is zero; entropy still changes: by drift, and by what clipping cuts off on one side more than on the
    other.

    ## Action Space
    `Discrete(vocab_size)`: the next token.

    ## Observation Space
    `MultiDiscrete([prompts] + [vocab_size + 1] * horizon)`: the prompt, then the tokens so far; places not
    yet written hold `vocab_size`.

    ## Reward
    1 with probability `rate`, else 0, whatever the answer is.

    ## Episode End
    Terminates after `horizon` tokens.

    ## Arguments
    `vocab_size`, `horizon`, `accepting` (the right sequences of each prompt, for the score), `rate` in [0, 1].
    Ready-made (16 prompts, 8 arms, 1 to 3 of them right): "rare" (rate 0.1), "half" (0.5) and "often" (0.9).
    Raises ValueError for a rate outside [0, 1].

    ## References
    Spurious rewards and clipping: 2506.10947; clip bounds and entropy: 2509.26114.
    """

    QUESTION = "What does clipping do to entropy by itself?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "rare": _preset(0.1),
        "half": _preset(0.5),
        "often": _preset(0.9),
    }

    def __init__(self, vocab_size: int, horizon: int, accepting: Accepting, rate: float = 0.5) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate}; give a probability in [0, 1]")
        truth = accepting_table(vocab_size, horizon, accepting)
        super().__init__(ExactModel(vocab_size, horizon, truth, verdict=torch.full_like(truth, rate)))
