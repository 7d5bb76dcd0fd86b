"""What the doctor says: one finding a sentence, with the way to mend it."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("problem", "warning", "note")  # will fail; may mislead or be slow; worth knowing


@dataclass(frozen=True)
class Finding:
    """One thing found: how bad, what, and how to mend it ("" where nothing needs mending)."""

    level: str
    what: str
    mend: str = ""
