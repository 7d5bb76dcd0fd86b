"""The page: sections in, one HTML file out that needs nothing else, neither network nor scripts nor fonts."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import DictLoader, Environment
from markupsafe import Markup

import etr
from etr.files import atomic_write
from etr.report.template import PAGE, TOKENS

REPORT = "report.html"
PIXELS_PER_POINT = 1.5  # pictures are saved at this multiple of their size on the page
WIDE = 800  # wider pictures get a row of their own, the others stand in pairs
_NUMBER = re.compile(r"[-+−]?\d")


@dataclass(frozen=True)
class Picture:
    """A PNG image with its caption as text."""

    png: bytes
    caption: str
    name: str = ""

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return "data:image/png;base64," + b64encode(self.png).decode()

    @property
    def width(self) -> int:
        """Width on the page, from the file's header (bytes 16-19 of a PNG)."""
        return round(int.from_bytes(self.png[16:20], "big") / PIXELS_PER_POINT)

    @property
    def wide(self) -> bool:
        """Does it need a row of its own?"""
        return self.width > WIDE


@dataclass(frozen=True)
class Sample:
    """One question with the model's answers before and, if training ended, after it."""

    prompt: str
    answer: str
    before: str
    after: str | None
    reward_before: float
    reward_after: float | None


@dataclass(frozen=True)
class Token:
    """A piece of an answer; marks: names of its colours, one a measure; numbers: seen when pointed at."""

    text: str
    marks: str
    numbers: str


@dataclass(frozen=True)
class Completion:
    """An answer token by token, with a line about it; good: did it get a reward?"""

    note: str
    tokens: Sequence[Token]
    good: bool


@dataclass(frozen=True)
class TokenSample:
    """A question of one training step and some of the answers that were sampled; label: what it is chosen by."""

    label: str
    prompt: str
    answer: str
    completions: Sequence[Completion]


@dataclass(frozen=True)
class Section:
    """One part of a report; everything in it is plain text or data and is escaped on the page.

    source: the run folder it tells about; text: paragraphs apart by an empty line; table: header and rows;
    token_samples: answers with coloured tokens, of which one is shown at a time; details: folded texts, (title, text).
    """

    title: str
    text: str = ""
    figures: Sequence[Picture] = ()
    table: tuple[Sequence[str], Sequence[Sequence[str]]] | None = None
    samples: Sequence[Sample] = ()
    token_samples: Sequence[TokenSample] = ()
    details: Sequence[tuple[str, str]] = ()
    source: str = ""


def write_report(folder: Path, sections: Sequence[Section]) -> Path:
    """Write report.html into the folder and return its path. Raises InputError if it cannot be written."""
    path = folder / REPORT
    atomic_write(path, render(sections, title=folder.resolve().name))
    return path


def render(sections: Sequence[Section], title: str) -> str:
    """The page as HTML text."""
    parts = DictLoader({"tokens": TOKENS})
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=parts)
    environment.filters["paragraphs"] = paragraphs
    environment.filters["numeric"] = numeric
    style = Markup(files("etr.report").joinpath("page.css").read_text(encoding="utf-8"))  # ours, so trusted
    now = datetime.now()
    made = f"{now.day} {now:%B %Y, %H:%M} · etr {etr.__version__}"
    return environment.from_string(PAGE).render(sections=sections, title=title, style=style, made=made)


def paragraphs(text: str) -> list[str]:
    """Paragraphs of a text, without the empty lines between them; a % sign stays on the line of its number."""
    return [part.strip().replace(" %", "\xa0%") for part in text.split("\n\n") if part.strip()]


def numeric(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns hold numbers throughout, to be set flush right with digits of one width.

    >>> numeric([["etr", "0.5 [0.4, 0.6]"], ["grpo", "−1"]])
    [False, True]
    """
    return [all(_NUMBER.match(cell) for cell in column) for column in zip(*rows, strict=True)]
