"""Prompt augmentation: every prompt of a step is asked in one of several ways, drawn by (seed, step, prompt).

Paper: "Prompt augmentation for GRPO", 2602.03190: each training item draws one template uniformly. A format reward that
follows the template is left to the task's own reward. Held-out questions are asked as they are.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from etr.errors import InputError
from etr.llm.items import Item

QUESTION = "{question}"


def load_templates(path: str) -> tuple[str, ...]:
    """The lines of a text file, each with {question} once; none for no path. Raises InputError for other lines."""
    if not path:
        return ()
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"templates: {path} cannot be read ({error}); give a text file, one template a line") from None
    for number, line in enumerate(lines, start=1):
        if line and line.count(QUESTION) != 1:
            raise InputError(f"templates: line {number} of {path} needs {QUESTION} exactly once, it is: {line}")
    found = tuple(line for line in lines if line)
    if not found:
        raise InputError(f"templates: {path} holds none; write one template a line, such as: Solve this. {QUESTION}")
    return found


def asked(item: Item, templates: Sequence[str], seed: int, step: int, number: int) -> Item:
    """The item with its last message put into one of the templates, the same for the same numbers."""
    if not templates:
        return item
    template = random.Random(f"template/{seed}/{step}/{number}").choice(templates)
    *before, last = item.messages
    message = {**last, "content": template.replace(QUESTION, str(last["content"]))}
    return dataclasses.replace(item, messages=(*before, message), asked=item.question)
