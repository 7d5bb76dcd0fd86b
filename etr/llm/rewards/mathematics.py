"""Are two mathematical answers the same? Our extraction and plain numbers first, then math-verify (Apache-2.0).

math-verify's own time limits are off: they rest on signals that C code holds back. The pool's limit ends everything.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

from etr.errors import InputError
from etr.llm.items import Item
from etr.llm.rewards.answers import after_thinking, boxes, marked, said, unbracketed
from etr.llm.rewards.forms import formula, hedged, letter, normal, same_in_base, same_number, single_backslashes

TAIL = 1500  # characters at the end of a completion in which an unmarked answer is looked for


def math_score(item: Item, completion: str) -> float:
    """The reward `math`: 1 for a completion whose answer equals the right one as mathematics."""
    return float(is_right(completion, item.answer))


def is_right(completion: str, answer: str) -> bool:
    r"""Does the completion end in the right answer? `answer` may be LaTeX, with or without $ or \boxed, or plain.

    Graded is the last `<answer>`, `\boxed`, `####` or "the answer is"; failing all, the last formula or number. Text
    that no parser understands is compared as text. No limit on time: see the pool.

    >>> is_right(r"It is $\frac{2}{4}$.", "0.5"), is_right(r"\boxed{\{2, 1\}}", r"\{1,2\}"), is_right("(B)", "B")
    (True, True, True)
    """
    text, right = single_backslashes(after_thinking(completion)).strip(), single_backslashes(answer).strip()
    if not text or not right:
        return False
    found = marked(text)
    part = found if found is not None else said(text) or text
    inside = marked(right)
    verdict = True if normal(text) == normal(right) != "" else _by_text(part, right if inside is None else inside)
    if verdict is not None:
        return verdict
    if found is None and len(part) < len(text) and hedged(part, right):
        return False
    return any(_verify(right, reading) for reading in dict.fromkeys(_readings(text, found, part, right)))


def _by_text(part: str, right: str) -> bool | None:
    """A verdict without a parser: equal text, plain numbers, options of a multiple choice; None if it needs one."""
    if normal(part) == normal(right) != "":
        return True
    option = letter(right)
    if option is None:
        based = same_in_base(part, right)
        return same_number(part, right) if based is None else based
    given = letter(part)
    if given is not None:
        return given[0] == option[0]
    return True if option[1] and normal(part) == normal(option[1]) else None


def _readings(text: str, found: str | None, part: str, right: str) -> Iterator[str]:
    r"""Texts for math-verify, the likeliest first. It unites the last boxes of a text itself: \boxed{1}, \boxed{2}."""
    starts = [start for start, _ in boxes(text)]
    if found is None:
        yield text[-TAIL:]
        if len(part) < len(text):
            yield formula(part)
        if "[" not in right:
            yield unbracketed(text[-TAIL:])
            yield formula(unbracketed(part[-TAIL:]))
    elif starts and boxes(text)[-1][1] == found:
        near = [start for start in starts if starts[-1] - start < TAIL]
        yield text[near[0] :][: 2 * TAIL]
    else:
        yield formula(found)


def _verify(right: str, reading: str) -> bool:
    library = _library()
    gold = _parse_right(right)
    return bool(gold) and bool(
        library.verify(
            gold,
            library.parse(reading, parsing_timeout=None),
            timeout_seconds=None,
            allow_set_relation_comp=True,
        )
    )


@lru_cache(maxsize=4096)  # a group shares its right answer
def _parse_right(right: str) -> list[Any]:
    parsed: list[Any] = _library().parse(formula(right), parsing_timeout=None)
    return parsed


@cache
def _library() -> Any:
    try:
        import math_verify
    except ImportError:
        raise InputError("the reward 'math' needs math-verify: pip install math-verify (or choose numeric)") from None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off, as they should be
    return math_verify
