"""Addition modulo m: a task with structure that prompts share, small enough to enumerate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from toy_envs.accepting import accepting_table
from toy_envs.base import SequenceEnv
from toy_envs.checks import check_table
from toy_envs.model import ExactModel


class ModArithmetic(SequenceEnv):
    """
    ## Description
    The prompt holds two numbers a and b, the answer is (a + b) mod m, all written with the same number of
    digits in the same base. There is one prompt to each pair, number a·m + b. A table of logits learns every
    sum by itself; a policy that reads the digits can carry over what it learnt.

    ## Action Space
    `Discrete(base)`: the next digit, most significant first.

    ## Observation Space
    `MultiDiscrete([base] * 2T + [base + 1] * T)`: the digits of a, of b, and of the answer so far; places not
    yet written hold `base`.

    ## Reward
    1 after the last digit if the sum is right, else 0.

    ## Episode End
    Terminates after T digits, as many as m − 1 needs.

    ## Arguments
    `modulus` m of at least 2, `base` of at least 2 (None: m, answers of one digit). Ready-made: "m5" (25
    prompts, answers of 1 digit), "m8" (64 prompts, 3 binary digits) and "m9" (81 prompts, 2 ternary digits).
    Raises ValueError for other numbers.

    ## References
    This project's own; modular addition is the task of Power et al., Grokking (2201.02177).
    """

    QUESTION = "Which sums are learnt, and does one carry over to another?"
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "m5": {"modulus": 5},
        "m8": {"modulus": 8, "base": 2},
        "m9": {"modulus": 9, "base": 3},
    }

    def __init__(self, modulus: int, base: int | None = None) -> None:
        base = modulus if base is None else base
        if modulus < 2 or base < 2:
            raise ValueError(f"modulus {modulus} and base {base} leave nothing to add; give at least 2")
        digits = 1
        while base**digits < modulus:
            digits += 1
        check_table(modulus**2, base, digits)

        def written(n: int) -> tuple[int, ...]:
            return tuple(n // base**place % base for place in reversed(range(digits)))

        pairs = [(a, b) for a in range(modulus) for b in range(modulus)]
        table = accepting_table(base, digits, [[written((a + b) % modulus)] for a, b in pairs])
        text = torch.tensor([written(a) + written(b) for a, b in pairs])
        super().__init__(ExactModel(base, digits, table, prompt_tokens=text))
