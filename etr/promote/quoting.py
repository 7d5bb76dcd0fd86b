"""Overrides as Hydra's grammar and bash take them, with the run's own folder filled in at the start."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence

from etr.errors import InputError

FOLDER = "$FOLDER"  # what a launch script knows the folder of its run by


def in_folder(name: str) -> str:
    """A file of the run's folder, as a value of an override; quoted for Hydra, since a path may hold anything."""
    return f"'{FOLDER}/{name}'"


def hydra_text(text: str) -> str:
    """A text as Hydra's grammar takes it: quoted where it has more than a path has.

    Raises InputError for a text that no quotes keep as it is.

    >>> hydra_text("/models/qwen-7b"), hydra_text("mine, twice")
    ('/models/qwen-7b', "'mine, twice'")
    """
    refuse_marks(text, ("\\", "${"))
    escaped = text.replace("'", "\\'")
    return text if re.fullmatch(r"[\w./@+-]+", text) else f"'{escaped}'"


def refuse_marks(text: str, marks: Sequence[str] = ("'", "\\", "${")) -> None:
    """Raise InputError for a text with one of these marks; the default is for paths that `in_folder` stands for."""
    for mark in marks:
        if mark in text:
            raise InputError(
                f"'{text}' has {mark} in it, which Hydra would read as something else; choose another name"
            )


def hydra_value(value: object) -> str:
    """Plain values as Hydra reads them; a text is taken as it is."""
    return value if isinstance(value, str) else json.dumps(value)


def bash_word(text: str) -> str:
    """One word for bash, in which only the run's own folder is filled in.

    >>> print(bash_word("a=${b}"), bash_word("file='$FOLDER/x'"))
    'a=${b}' "file='$FOLDER/x'"
    """
    if FOLDER not in text:
        return shlex.quote(text)
    parts = (re.sub(r'([$"`\\])', r"\\\1", part) for part in text.split(FOLDER))
    return f'"{FOLDER.join(parts)}"'
