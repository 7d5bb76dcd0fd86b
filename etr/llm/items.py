"""One question with its right answer: the unit of every task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Message = Mapping[str, str]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Item:
    """A question as chat messages, its right answer, and what a library's own scorer may need (`entry`)."""

    messages: tuple[Message, ...]
    answer: str
    entry: Mapping[str, Any] | None = field(default=None, compare=False)

    @property
    def prompt(self) -> str:
        """The text to show: the last message, without a system message or worked examples."""
        return self.messages[-1]["content"]

    @property
    def question(self) -> str:
        """The text that identifies the item: the contents of its messages."""
        return "\n".join(message["content"] for message in self.messages)


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one user message."""
    return ({"role": "user", "content": text},)
