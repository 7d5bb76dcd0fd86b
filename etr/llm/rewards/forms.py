"""Normal forms of short answers: plain numbers, letters of a multiple choice, text without LaTeX's clothes."""

from __future__ import annotations

import re
from fractions import Fraction

from etr.llm.rewards.plain import parse_number

FORMULA = ("$", "\\boxed", "\\(", "\\[", "\\begin{align")
SHORT = 100  # characters
CLOSE = Fraction(1, 10**6)
SPACING = re.compile(r"\\[,!;: ]|\\q?quad\b|~|\\left(?![a-z])|\\right(?![a-z])|\\displaystyle\b|\\limits\b")
WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mbox|operatorname|bf|rm)\s*\{([^{}]*)\}")
DOUBLED = re.compile(r"\\\\(?=[a-zA-Z])")
DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"))
FRACTION = r"\\[dt]?frac *(?:\{ *(-?\d{1,12}) *\}|(\d)) *(?:\{ *(\d{1,12}) *\}|(\d))"  # \frac{1}{2}, \frac12, \frac 1 2
MIXED = re.compile(rf"([-+]?) *(\d{{1,12}})? *{FRACTION}")
PLAIN_MIXED = re.compile(r"(-?)(\d{1,12}) +(\d{1,12})/(\d{1,12})")
PERIODIC = re.compile(r"(-?)(\d{0,9})\.(\d{0,9})\\overline\{(\d{1,9})\}")
NAMES = re.compile(r"(?<![\\\w])(pi|theta|alpha|beta|gamma|lambda|infty|infinity)(?!\w)")
BASED = re.compile(r"([0-9A-Za-z]{1,200})(?:_ *\{?(\d{1,2})\}?)?")
UNIT = re.compile(r"(-?\$?[\d.,/]*\d)(?:\s*(?:[^\W\d_]{2,}|\^?\\circ|°|\\degree)[.²³]?(?:\^\{?[23]\}?)?){1,4}")
CHOICE = re.compile(r"\(?([A-J])(?:\s*[).:]\s*(.*)|$)", re.DOTALL)
ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")


def single_backslashes(text: str) -> str:
    r"""`\\frac`, escaped once too often, as `\frac`; the row ends `\\` of a matrix stay."""
    return text if "\\begin" in text else DOUBLED.sub(r"\\", text)


def bare(text: str) -> str:
    r"""An answer without the delimiters around the whole of it and without spacing and font commands.

    >>> bare(r"$\text{(C)}$."), bare(r"1{,}000\,\text{cm}")
    ('(C)', '1,000 cm')
    """
    text = text.strip().rstrip(".").strip()
    for start, end in DELIMITERS:
        inner = text[len(start) : len(text) - len(end)]
        if (
            len(text) > len(start) + len(end)
            and text.startswith(start)
            and text.endswith(end)
            and start[-1] not in inner
        ):
            text = inner.strip()
    text = WRAPPED.sub(r" \1", SPACING.sub(" ", text.replace("{,}", ",").replace(",\\!", ",")))
    return " ".join(text.split()).rstrip(".")


def normal(text: str) -> str:
    r"""Text to be compared as text: no spaces, no backslashes, and without case if it holds a word.

    >>> normal(r"\frac 1 2") == normal(r"\tfrac{1}{2}"), normal("The  Red fox."), normal("x < Y")
    (True, 'redfox', 'x<Y')
    """
    text = bare(text).strip(" .,;:!?\"'`*")
    if re.search(r"(?<!\\)[^\W\d_]{3}", text):
        text = ARTICLE.sub("", text.casefold())
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return re.sub(r"[\s\\{}]", "", text)


def number(text: str) -> Fraction | None:
    r"""The number that a short answer is, its unit aside; None for anything else.

    >>> number(r"1\frac{1}{2}"), number("-2 3/4"), number("$1,200.50"), number("12 cm"), number("3x")
    (Fraction(3, 2), Fraction(-11, 4), Fraction(2401, 2), Fraction(12, 1), None)
    """
    text = bare(text).replace("\\$", "").replace("\\%", "%")
    for pattern, value in ((MIXED, _latex_fraction), (PLAIN_MIXED, _mixed), (PERIODIC, _periodic)):
        found = pattern.fullmatch(text)
        if found is not None:
            return value(*found.groups(default=""))
    unit = UNIT.fullmatch(text)
    return parse_number(text if unit is None else unit[1])


def same_number(left: str, right: str) -> bool | None:
    """Are two plain numbers the same? None if one of them is none.

    To six decimals, and to six digits where they are smaller than 1, so integers exactly. 10 % is both 10 and 0.1.
    """
    a, b = number(left), number(right)
    if a is None or b is None:
        return None
    scales = {Fraction(1)} if ("%" in left) == ("%" in right) else {Fraction(1), Fraction(1, 100)}
    a_scales = scales if "%" in left else {Fraction(1)}
    b_scales = scales if "%" in right else {Fraction(1)}
    return any(_close(a * x, b * y) for x in a_scales for y in b_scales)


def formula(text: str) -> str:
    """Text as LaTeX between dollars, unless it has formulas in it already; pi, written out, is the number.

    >>> formula("pi/2")
    '$\\\\pi/2$'
    """
    if any(mark in text for mark in FORMULA):
        return text
    return "$" + NAMES.sub(lambda name: "\\infty" if name[1] == "infinity" else "\\" + name[1], text) + "$"


def hedged(part: str, right: str) -> bool:
    """Is this "4 or 5" where one number is right? Naming several must not be rewarded."""
    return number(right) is not None and re.search(r"\bor\b", part[:SHORT]) is not None


def same_in_base(left: str, right: str) -> bool | None:
    """Are two numerals, of which at least one has a base as in 101_2, the same? None for anything else.

    Where one has no base, its digits are read in the base of the other.
    """
    a, b = BASED.fullmatch(bare(left)), BASED.fullmatch(bare(right))
    if a is None or b is None or not (a[2] or b[2]):
        return None
    try:
        return int(a[1], int(a[2] or b[2])) == int(b[1], int(b[2] or a[2]))
    except ValueError:  # a digit that the base has not, or x_1, which is a name
        return None


def letter(text: str) -> tuple[str, str] | None:
    """Letter and text of an option of a multiple choice, such as "(B) 12" or "B"; None for anything else."""
    found = CHOICE.fullmatch(bare(text))
    return None if found is None else (found[1], found[2] or "")


def _close(a: Fraction, b: Fraction) -> bool:
    return abs(a - b) <= CLOSE * min(Fraction(1), max(abs(a), abs(b)))


def _latex_fraction(sign: str, whole: str, top: str, digit: str, bottom: str, last: str) -> Fraction | None:
    return _mixed(sign, whole or "0", top or digit, bottom or last)


def _mixed(sign: str, whole: str, top: str, bottom: str) -> Fraction | None:
    if not int(bottom):
        return None
    value = int(whole) + Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def _periodic(sign: str, whole: str, digits: str, period: str) -> Fraction:
    value = int(whole + digits or "0") + Fraction(int(period), 10 ** len(period) - 1)
    return (-value if sign else value) * Fraction(1, 10 ** len(digits))
