r"""Where in a completion the answer is: `<answer>`, `\boxed{…}`, `####`, "the answer is"."""

from __future__ import annotations

import re

TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL | re.IGNORECASE)
HASHED = re.compile(r"####[ \t]*:?[ \t]*(\S[^\n]*)?")
# The sentence goes on until its full stop; a dot between digits is none, and $…$ may hold anything.
SAID = re.compile(
    r"\b(?:answer|result|solution|choice)\b(?:\s+(?:is|are|was|would\s+be|should\s+be))*\s*(?:is|are|=|:)\s*"
    r"(?:\*\*|__)?\s*:?\s*(?:(?:option|choice)\s+)?((?:\$[^$\n]*\$|\d\.\d|[^\n$.]|\.(?=\S)){1,300})",
    re.IGNORECASE,
)
FINAL = re.compile(r"\bfinal answer\b", re.IGNORECASE)
# A minus is a sign only where no digit or letter stands before it, so the last number of "9-4" is 4, not -4.
INTEGER = r"(?:[1-9]\d{0,2}(?:,\d{3})+|\d+)"
EXPONENT = r"(?:[eE][+-]?\d{1,3})?"  # bounded: 1e999999999 has more digits than a computer
NUMBER = re.compile(rf"(?<![\w.])-?(?:{INTEGER}/\d+|{INTEGER}(?:\.\d+)?{EXPONENT}|\.\d+{EXPONENT})(?![\w])")
SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>")  # <|im_end|> and the like, where a tokenizer left them in the text
BOX = re.compile(r"\\f?boxed\s*\{|\\fbox\s*\{")
BRACKETED = re.compile(r"(?<![\w\\}\])])\[([^\[\],;]*?)(?<!\\)\](?![({\[])")
THOUGHT_ENDS = ("</think>", "</thinking>", "</reasoning>", "</thought>")
THOUGHT_STARTS = ("<think>", "<thinking>", "<reasoning>", "<thought>")


def after_thinking(completion: str) -> str:
    """The completion without its thoughts and special tokens; nothing is left of thoughts that never end.

    >>> after_thinking("<think>4? no.</think> It is 5.<|im_end|>"), after_thinking("<think>perhaps 4")
    (' It is 5.', '')
    """
    text = SPECIAL.sub("", completion)
    lower = text.lower()
    end = max((lower.rfind(mark) + len(mark) for mark in THOUGHT_ENDS if mark in lower), default=0)
    if not end and any(lower.lstrip().startswith(mark) for mark in THOUGHT_STARTS):
        return ""
    return text[end:]


def boxes(text: str) -> list[tuple[int, str]]:
    r"""Start and content of every `\boxed{…}` whose braces close, nested braces included, in order.

    >>> boxes(r"\boxed{1}, so \boxed{\frac{1}{2}} and \boxed{never")
    [(0, '1'), (14, '\\frac{1}{2}')]
    """
    found, after = [], 0
    for opening in BOX.finditer(text):
        if opening.start() < after:  # a box inside a box
            continue
        end = _closing(text, opening.end())
        if end is not None:
            found.append((opening.start(), text[opening.end() : end].strip()))
            after = end
        else:
            break  # braces are open until the end of the text: nothing after it can be told apart
    return found


def marked(text: str) -> str | None:
    r"""The last answer that is marked as one: by tag, else by box, else by ####; None if there is none.

    "Final answer: …" after the last box or #### counts as a mark too: some prompts ask for both.

    >>> marked(r"<answer>3</answer> of \boxed{4}"), marked("#### 1,200"), marked("perhaps 5")
    ('3', '1,200', None)
    """
    tagged = TAGGED.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    framed = [(start, content) for start, content in boxes(text)]
    framed = framed or [(found.start(), (found[1] or "").strip()) for found in HASHED.finditer(text)]
    if not framed:
        return None
    start, content = framed[-1]
    last = FINAL.search(text, start)
    return content if last is None else said(text[last.start() :]) or content


def said(text: str) -> str | None:
    """What follows the last "the answer is", up to the end of its sentence; None if nothing does.

    >>> said("So the final answer is (C) 3.5 m. I hope it is correct."), said("Answer: Paris")
    ('(C) 3.5 m', 'Paris')
    """
    found = SAID.findall(text)
    return str(found[-1]).strip().rstrip("*_ ") if found else None


def extract(text: str) -> str | None:
    """The answer a completion gives, by its marks, else by its words, else its last number; None if there is none.

    >>> extract("Some steps. Final Answer: 14/3"), extract("7 + 5 = 12."), extract("I do not know.")
    ('14/3', '12', None)
    """
    rest = after_thinking(text)
    found = marked(rest) or said(rest)
    if found:
        return found
    numbers = NUMBER.findall(rest)
    return str(numbers[-1]) if numbers else None


def unbracketed(text: str) -> str:
    """The text with [5] read as 5, as some tasks ask for answers in brackets; \\[…\\], x[3] and [1, 2] stay.

    >>> unbracketed("The ratio is [1/2]."), unbracketed("in [0, 1]")
    ('The ratio is 1/2.', 'in [0, 1]')
    """
    return BRACKETED.sub(r"\1", text)


def _closing(text: str, start: int) -> int | None:
    depth = 1
    for i in range(start, len(text)):
        if text[i] in "{}" and text[i - 1] != "\\":  # \{ and \} are printed braces
            depth += 1 if text[i] == "{" else -1
            if depth == 0:
                return i
    return None
