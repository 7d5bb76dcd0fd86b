"""A contextual bandit with a binary, verifiable reward: the LLM problem with answers of one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch

from toy_envs.base import ExactEnv
from toy_envs.model import ExactModel

Table = list[list[float]]


def fixed_gap(prompts: int = 16, arms: int = 10, gap: float = 0.2) -> Table:
    """Best arm (1 + gap)/2, all others (1 − gap)/2: how fast is a clear winner found?"""
    return _rotated([(1 + gap) / 2] + [(1 - gap) / 2] * (arms - 1), prompts)


def near_tie(prompts: int = 16, arms: int = 10, gap: float = 0.02) -> Table:
    """Two good arms, 0.6 and 0.6 − gap, the others 0.1: does luck or reward choose between them?"""
    return _rotated([0.6, 0.6 - gap] + [0.1] * (arms - 2), prompts)


def deceptive(prompts: int = 16, arms: int = 10) -> Table:
    """One arm of 0.9 beside decoys of 0.7 (half of the arms), the others 0: does an early commitment last?

    From a uniform policy the best arm's own logit always rises fastest, so a single runner-up cannot deceive;
    many together can. They earn most of the first rewards (80 % at 10 arms) and their joint probability first
    grows, more than the best arm's, and has to be unlearnt later.
    """
    decoys = arms // 2
    return _rotated([0.9] + [0.7] * decoys + [0.0] * (arms - 1 - decoys), prompts)


def multi_optimum(prompts: int = 16, arms: int = 10, optima: int = 3) -> Table:
    """Several arms tie at 0.8, the others 0.2: does the policy keep all right answers or collapse to one?"""
    return _rotated([0.8] * optima + [0.2] * (arms - optima), prompts)


def spread(prompts: int = 16, arms: int = 10) -> Table:
    """Prompts from hard to easy: does an objective spend its step where a group's rewards are mixed?

    success = sigmoid(ease + skill), ease −5.7 to 4.7 over the prompts, skill 3 for the best arm and −1 to 1
    for the others, so the best arm has the same lead in log-odds everywhere. At 16 x 10 the uniform policy
    succeeds in 1 % (hardest prompt) to 99 % (easiest), the optimal one in 6 % to over 99.9 %.
    """
    skill = torch.cat([torch.tensor([3.0]), torch.linspace(-1.0, 1.0, arms - 1)]).double()
    ease = torch.linspace(-5.7, 4.7, prompts).double()
    rows: Table = torch.sigmoid(ease[:, None] + skill).tolist()
    return [_rotate(row, prompt) for prompt, row in enumerate(rows)]


def _rotated(row: list[float], prompts: int) -> Table:
    return [_rotate(row, prompt) for prompt in range(prompts)]


def _rotate(row: list[float], prompt: int) -> list[float]:
    """Put the best arm at place `prompt` (modulo arms), so that a policy blind to the prompt cannot win."""
    shift = prompt % len(row)
    return row[-shift:] + row[:-shift]


class Bandit(ExactEnv[np.int64]):
    """
    ## Description
    Each prompt has a list of arms; arm a of prompt p succeeds with probability `success[p][a]`. Answers of
    one token: the smallest case in which groups, advantages and clipping behave as in an LLM.

    ## Action Space
    `Discrete(arms)`.

    ## Observation Space
    `Discrete(prompts)`: the index of the prompt.

    ## Reward
    1 with probability `success[prompt][action]`, else 0.

    ## Episode End
    Terminates after one action.

    ## Arguments
    `success`: one list of probabilities per prompt, all of the same length. Ready-made (16 x 10):
    `Bandit.from_preset("spread")`; other sizes: `Bandit(spread(prompts=4, arms=3))`. Raises ValueError for
    ragged lists, and for anything but numbers in [0, 1].

    ## References
    Contextual bandits: Lattimore & Szepesvári, Bandit Algorithms (2020), chapter 18.
    """

    QUESTION = "Where does the macro level spend its budget: on hard prompts, on easy ones, or in between?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        preset.__name__.replace("_", "-"): {"success": preset()}
        for preset in (multi_optimum, deceptive, near_tie, spread, fixed_gap)
    }
    TYPICAL = "spread"  # the preset that the question is about

    def __init__(self, success: Sequence[Sequence[float]]) -> None:
        rows = [list(row) for row in success]
        if not rows:
            raise ValueError("success is empty; give one list of probabilities per prompt")
        for prompt, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise ValueError(
                    f"prompt {prompt} has {len(row)} arms but prompt 0 has {len(rows[0])}; "
                    "give every prompt the same number of arms"
                )
        try:
            table = torch.tensor(rows, dtype=torch.float64)
        except (TypeError, ValueError):
            raise ValueError("success holds something that is no number; give probabilities in [0, 1]") from None
        model = ExactModel(len(rows[0]), 1, table)
        super().__init__(model, gymnasium.spaces.Discrete(model.prompts))

    def _observation(self) -> np.int64:
        return np.int64(self._prompt)
