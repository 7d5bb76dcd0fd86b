"""Items from a .jsonl file: one object a line with a prompt (text or chat messages) and an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.llm.items import Item, Message, user

EXAMPLE = '{"prompt": "What is 2 + 3?", "answer": "5"}'


def read_items(path: Path) -> list[Item]:
    """Read every line; blank lines are skipped. Raises `InputError` naming the file, the line and what is missing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read task file '{path}' ({error}); give the path of a UTF-8 .jsonl file") from error
    items = [_item(line, f"'{path}' line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not items:
        raise InputError(f"task file '{path}' has no items; write one object a line, {EXAMPLE}")
    return items


def _item(line: str, where: str) -> Item:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{where} is not JSON ({error.msg} at column {error.colno}); write one object a line"
        ) from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object; write {EXAMPLE}")
    for key in ("prompt", "answer"):
        if key not in row:
            raise InputError(f"{where} lacks the key '{key}'; each line needs 'prompt' and 'answer'")
    return Item(_messages(row["prompt"], where), _answer(row["answer"], where))


def _messages(prompt: Any, where: str) -> tuple[Message, ...]:
    if isinstance(prompt, str) and prompt.strip():
        return user(prompt)
    if isinstance(prompt, list) and prompt and all(_is_message(message) for message in prompt):
        return tuple(prompt)
    raise InputError(f"{where} has an unusable 'prompt'; give text, or a list of messages with role and content")


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


def _answer(answer: Any, where: str) -> str:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        raise InputError(f"{where} has an unusable 'answer'; give text or a number")
    return str(answer)
