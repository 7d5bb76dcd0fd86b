"""One question with its right answer: the unit of every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A question as chat messages, its right answer, and what a library's own scorer may need (`entry`).

    `asked` is the bare question where the prompt adds an instruction to it; it identifies the item.
    """

    messages: tuple[Message, ...]
    answer: str
    entry: Mapping[str, Any] | None = field(default=None, compare=False)
    asked: str = ""

    @property
    def prompt(self) -> str:
        """The text to show: the last message, without a system message or worked examples."""
        return self.messages[-1]["content"]

    @property
    def text(self) -> str:
        """The contents of all messages: the prompt of a model that knows no chat."""
        return "\n".join(message["content"] for message in self.messages)

    @property
    def question(self) -> str:
        """The text that identifies the item, whatever instruction the prompt adds."""
        return self.asked or self.text


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user message."""
    return ({"role": "user", "content": text},)
