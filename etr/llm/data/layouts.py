r"""Layouts of question files: which column is the prompt, where in another the answer is, and how it is graded.

prompt, answer                      any file of one's own
question, answer with "#### 72"     GSM8K
problem, answer (and solution)      MATH-500, AIME, AMC
problem, solution with \boxed{}     MATH, and hub copies of AIME
prompt, reward_model.ground_truth   files made for verl, such as DAPO's
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etr.errors import InputError
from etr.llm.data.rows import Row, is_source, read_rows
from etr.llm.items import Item, Message, user
from etr.llm.rewards.answers import HASHED, boxes
from etr.llm.rewards.plain import parse_number

PROMPTS = ("prompt", "problem", "question", "input")
ANSWERS = ("answer", "final_answer", "reward_model.ground_truth", "solution", "target")
BOXED = "Put the final answer within \\boxed{}."
BENCHMARK_PROMPTS = ("problem", "question")  # these ask for no form of the answer, so the prompt must


@dataclass(frozen=True)
class Layout:
    """Column of the prompt, column of the answer, and the instruction that follows the question."""

    prompt: str
    answer: str
    instruction: str

    def item(self, row: Row, where: str) -> Item:
        """The item of one row. Raises InputError naming the place and the column."""
        messages = _messages(_get(row, self.prompt, where), where, self.prompt)
        asked = ""
        if self.instruction:
            asked = "\n".join(message["content"] for message in messages)
            last = messages[-1]
            messages = (*messages[:-1], {**last, "content": f"{last['content']}\n\n{self.instruction}"})
        return Item(messages, _answer(_get(row, self.answer, where), where, self.answer), asked=asked)

    def lacks_answer(self, row: Row) -> bool:
        """Is the column there and empty?"""
        return self.answer in row and row[self.answer] in (None, "")


def find_layout(rows: Sequence[tuple[str, Row]], options: Mapping[str, Any]) -> Layout:
    """The layout of a file by its first row; the options prompt, answer and instruction choose for themselves.

    Raises InputError when a column is not there.
    """
    where, first = rows[0]
    names = {name.lower(): name for name in _columns(first)}
    chosen = {}
    for kind, known in (("prompt", PROMPTS), ("answer", ANSWERS)):
        column = options.get(kind)
        found = [names[name] for name in known if name in names] if column is None else [str(column)]
        if not found or found[0] not in names.values():
            lacks = f"lacks the key '{found[0] if found else kind}'"
            others = f"; it has {', '.join(_columns(first))}" if first else ""
            raise InputError(
                f"{where} {lacks}{others}; each line needs 'prompt' and 'answer', or name the columns with the task "
                f"options prompt and answer"
            )
        chosen[kind] = found[0]
    benchmark = chosen["prompt"].lower() in BENCHMARK_PROMPTS and options.get("prompt") is None
    instruction = str(options.get("instruction", BOXED if benchmark else ""))
    return Layout(chosen["prompt"], chosen["answer"], instruction)


def read_items(name: str, rows: Sequence[tuple[str, Row]], options: Mapping[str, Any]) -> list[Item]:
    """The items of a file's rows.

    Rows whose answer is null or empty, as published tables have some, are left out with a warning. Raises
    InputError for columns that are not there, and for rows that cannot be used.
    """
    layout = find_layout(rows, options)
    empty = [where for where, row in rows if layout.lacks_answer(row)]
    if len(empty) == len(rows):
        raise InputError(f"no row of '{name}' has an answer in '{layout.answer}'; name another column with answer=…")
    if empty:
        warnings.warn(f"{len(empty)} rows have no answer and are left out, the first is {empty[0]}", stacklevel=2)
    left_out = set(empty)
    return [layout.item(row, where) for where, row in rows if where not in left_out]


def is_benchmark(name: str, options: Mapping[str, Any]) -> bool:
    """Is this task a file in a benchmark's layout, meant to be used as a whole?"""
    if not is_source(name):
        return False
    return find_layout(read_rows(name), options).prompt.lower() in BENCHMARK_PROMPTS


def scorer_of(items: Sequence[Item]) -> str:
    """The reward that `auto` means for these answers: numbers by value, LaTeX as mathematics, the rest as text."""
    if all(parse_number(item.answer) is not None for item in items):
        return "numeric"
    return "math" if any(mark in item.answer for item in items for mark in ("\\", "$", "^", "_")) else "text"


def _columns(row: Row) -> list[str]:
    nested = [f"{name}.{key}" for name, value in row.items() if isinstance(value, dict) for key in value]
    return [*row, *nested]


def _get(row: Row, column: str, where: str) -> Any:
    value: Any = row
    for key in [column] if column in row else column.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise InputError(
                f"{where} lacks the key '{column}'; each line needs 'prompt' and 'answer', or the columns named"
            )
        value = value[key]
    return value


def _messages(prompt: Any, where: str, column: str) -> tuple[Message, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return user(prompt)
    if isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        return tuple(prompt)
    raise InputError(f"{where} has an unusable '{column}'; give text, or a list of messages with role and content")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _answer(answer: Any, where: str, column: str) -> str:
    """The right answer: what follows the last ####, what a worked solution puts in its last box, or all of it."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise InputError(f"{where} has an unusable '{column}'; give text or a number")
    if isinstance(answer, float) and answer.is_integer():
        return str(int(answer))  # 27.0, as some files write 27
    text = str(answer).strip()
    hashed, boxed = HASHED.findall(text), boxes(text)
    if hashed and hashed[-1]:
        return str(hashed[-1]).strip().replace(",", "")
    return boxed[-1][1] if boxed else text
