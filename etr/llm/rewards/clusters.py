"""Final answers as numbers: completions that come to the same result are in one cluster, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etr.llm.rewards.answers import extract
from etr.llm.rewards.forms import normal, number


def final_answer(completion: str) -> object | None:
    """What a completion came to: the same number or text for answers that are the same, None without an answer."""
    answer = extract(completion)
    if answer is None:
        return None
    value = number(answer)
    return normal(answer) if value is None else value


def clusters(completions: Sequence[str]) -> Tensor:
    """Number of the final answer of each completion, int64 [B]; one without an answer is alone in its cluster.

    >>> clusters(["It is 12.", "so 12.0", "no idea"]).tolist()
    [0, 0, 1]
    """
    numbers: dict[object, int] = {}
    found = []
    for place, text in enumerate(completions):
        answer = final_answer(text)
        key = ("none", place) if answer is None else ("answer", answer)
        found.append(numbers.setdefault(key, len(numbers)))
    return torch.tensor(found)
