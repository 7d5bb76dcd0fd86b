"""Is this completion right? Pick out its final answer, then compare numbers as numbers and everything else as text."""

from __future__ import annotations

from fractions import Fraction

from etr.llm.rewards.answers import NUMBER, after_thinking, marked


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
    the last number; else the whole completion. Thoughts before `</think>` do not count. May be empty.

    >>> final_answer("7 + 5 = 12.", "12"), final_answer("It is Paris.", "Paris")
    ('12', 'It is Paris.')
    """
    text = after_thinking(completion)
    found = marked(text)
    if parse_number(answer) is None:
        return text.strip() if found is None else found
    numbers: list[str] = NUMBER.findall(_plain(text if found is None else found))
    if found is not None and (parse_number(found) is not None or len(numbers) != 1):
        return found  # of "12 or 13" neither is the answer, of "12 apples" 12 is
    return numbers[-1] if numbers else ""


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
