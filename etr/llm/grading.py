"""Is this completion right? Pick out its final answer, then compare numbers as numbers and everything else as text."""

from __future__ import annotations

import re
from fractions import Fraction

# A minus is a sign only where no digit or letter stands before it, so the last number of "9-4" is 4, not -4.
NUMBER = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+|/\d+)?(?!\w)")
MARKED = (re.compile(r"<answer>(.*?)</answer>", re.DOTALL), re.compile(r"\\boxed\{([^{}]*)\}"), re.compile(r"####(.*)"))


def parse_number(text: str) -> Fraction | None:
    """The number that `text` is, exactly, or None: "12.", "$1,200" and "-3/4" are numbers, "twelve" and "1/0" are not.

    >>> parse_number("1,200.50"), parse_number("4 apples")
    (Fraction(2401, 2), None)
    """
    plain = _plain(text).strip("$% ").rstrip(".")
    if NUMBER.fullmatch(plain) is None:
        return None
    try:
        return Fraction(plain.replace(",", ""))
    except (ValueError, ZeroDivisionError):  # more digits than Python converts, or a zero denominator
        return None


def final_answer(completion: str, answer: str) -> str:
    r"""The part of a completion that is graded.

    The last `<answer>…</answer>`, `\boxed{…}` or `#### …` if there is one; else, where the right `answer` is a number,
    the last number; else the whole completion. May be empty.

    >>> final_answer("7 + 5 = 12.", "12"), final_answer("It is Paris.", "Paris")
    ('12', 'It is Paris.')
    """
    for mark in MARKED:
        found = mark.findall(completion)
        if found:
            return str(found[-1]).strip()
    if parse_number(answer) is None:
        return completion.strip()
    numbers = NUMBER.findall(_plain(completion))
    return str(numbers[-1]) if numbers else ""


def same_answer(candidate: str, answer: str) -> bool:
    """True when both are the same number or, if they are not both numbers, the same words.

    Words are compared without case, outer punctuation and repeated spaces.

    >>> same_answer("12.", "12"), same_answer("1/2", "0.5"), same_answer(" paris.", "Paris"), same_answer("12", "21")
    (True, True, True, False)
    """
    left, right = parse_number(candidate), parse_number(answer)
    if left is not None and right is not None:
        return left == right
    return _words(candidate) == _words(answer)


def _plain(text: str) -> str:
    return text.strip().replace("\N{MINUS SIGN}", "-")


def _words(text: str) -> str:
    return " ".join(text.casefold().split()).strip(" .,;:!?\"'`*")
