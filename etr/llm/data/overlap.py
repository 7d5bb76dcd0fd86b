"""Do benchmark questions occur among the questions of training? Then a score on them means little."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from etr.llm.items import Item

WORD = re.compile(r"[^\W_]+")


def fingerprint(text: str) -> str:
    """A hash of the words and numbers of a question, whatever its case, spacing, punctuation and dollars."""
    return hashlib.sha256(" ".join(WORD.findall(text.casefold())).encode()).hexdigest()


def overlap(training: Iterable[Item], benchmark: Iterable[Item]) -> list[Item]:
    """The benchmark's items whose question the training items hold too."""
    seen = {fingerprint(item.question) for item in training}
    return [item for item in benchmark if fingerprint(item.question) in seen]


def warning(training: str, benchmark: str, common: list[Item], size: int) -> str:
    """The sentence that says so."""
    return (
        f"{len(common)} of the {size} questions of {benchmark} are also in {training}, such as "
        f"'{common[0].question[:60]}': a score on them is not one on unseen questions"
    )
