"""Two tasks for the toy Llama, small enough to be taught in seconds and far from solved by that."""

from __future__ import annotations

import random
from itertools import product

from etr.llm.items import Item, user

TOY_LLAMA = "toy-llama"
COPY_REVERSE, MOD_ARITHMETIC = "copy-reverse", "mod-arithmetic"
TOY_TASKS = (COPY_REVERSE, MOD_ARITHMETIC)
LETTERS, LENGTHS, MODULI = "abcdef", (3,), range(2, 10)
CHARACTERS = f"0123456789{LETTERS}+%=><"


def toy_items(name: str, seed: int) -> list[Item]:
    """All questions of a toy task, in an order that the seed fixes.

    copy-reverse: ">abc" is answered abc and "<abc" is answered cba; mod-arithmetic: "3+5%7=" is answered 1.
    """
    pairs = _copy_reverse() if name == COPY_REVERSE else _mod_arithmetic()
    return [Item(user(question), answer) for question, answer in random.Random(seed).sample(pairs, len(pairs))]


def _copy_reverse() -> list[tuple[str, str]]:
    words = ["".join(letters) for length in LENGTHS for letters in product(LETTERS, repeat=length)]
    return [pair for word in words for pair in ((f">{word}", word), (f"<{word}", word[::-1]))]


def _mod_arithmetic() -> list[tuple[str, str]]:
    return [(f"{a}+{b}%{m}=", str((a + b) % m)) for m in MODULI for a in range(m) for b in range(m)]
