"""Rewards by name: auto, exact, numeric, math, regex:PATTERN, and a user's own module:function."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from etr.errors import InputError, unknown
from etr.llm.items import Item
from etr.llm.rewards.plain import final_answer, parse_number, same_answer
from etr.references import import_name

Score = Callable[[Item, str], Any]  # a float, or a dict of them by component
GYM = "reasoning-gym:"  # then a dataset's name, ":" and its options as JSON: its own scorer grades


def find(spec: str) -> Score:
    """The score that `spec` names. Raises InputError for an unknown name, a bad pattern or a file that fails.

    A user's function is called as `function(prompt, completion, answer)`, the prompt as text or, if it has several
    messages, as that list.
    """
    name, _, rest = spec.partition(":")
    if spec in CHEAP:
        return CHEAP[spec]
    if spec == "math":
        from etr.llm.rewards.mathematics import math_score

        return math_score
    if name == "regex" and rest:
        return _pattern(rest)
    if spec.startswith(GYM):
        return _gym(spec.removeprefix(GYM))
    if not rest:
        raise InputError(unknown("reward", spec, NAMES))
    function = import_name(spec)
    if not callable(function):
        raise InputError(f"{spec} is no function; give one that takes (prompt, completion, answer)")
    return lambda item, completion: function(item.prompt, completion, item.answer)


def text(item: Item, completion: str) -> float:
    """Numbers by value, everything else by words, whatever stands before the final answer."""
    return float(same_answer(final_answer(completion, item.answer), item.answer))


def exact(item: Item, completion: str) -> float:
    """1 for the answer and not a character more."""
    return float(completion == item.answer)


def numeric(item: Item, completion: str) -> float:
    """1 if the final number is exactly the right one, in any notation. An answer that is no number is an error."""
    if parse_number(item.answer) is None:
        raise InputError(f"the reward 'numeric' needs answers that are numbers, not '{item.answer}'; use auto or math")
    return text(item, completion)


def start(item: Item, completion: str) -> float:
    """For a model that cannot yet stop: only the first character counts."""
    return float(completion.startswith(item.answer))


def _pattern(pattern: str) -> Score:
    """1 if the pattern occurs anywhere; `{answer}` in it stands for the right answer, taken literally."""
    try:
        re.compile(pattern.replace("{answer}", ""))
    except re.error as error:
        raise InputError(f"reward regex:{pattern} is no regular expression ({error}); mend it") from None

    def score(item: Item, completion: str) -> float:
        return float(re.search(pattern.replace("{answer}", re.escape(item.answer)), completion) is not None)

    return score


def _gym(rest: str) -> Score:
    """A dataset's own scoring of the extracted answer; a right number is right in any notation, credit in part is 0."""
    import reasoning_gym

    name, _, options = rest.partition(":")
    score_answer = reasoning_gym.create_dataset(name, **json.loads(options)).score_answer

    def score(item: Item, completion: str) -> float:
        candidate = final_answer(completion, item.answer)
        if parse_number(item.answer) is not None and same_answer(candidate, item.answer):
            return 1.0
        try:
            return float(score_answer(candidate, item.entry) == 1.0)
        except Exception:  # some scorers parse the text and fail on what they cannot read: that is a wrong answer
            return 0.0

    return score


CHEAP: dict[str, Score] = {"text": text, "exact": exact, "numeric": numeric, "start": start}  # graded in this process
NAMES = ("auto", "exact", "numeric", "math", "regex:PATTERN", "module:function", "file.py:function")
