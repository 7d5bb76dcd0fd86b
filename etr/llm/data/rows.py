"""Rows of a file or a hub dataset, each with the words that name it in a message."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.llm.data.hub import PREFIX, hub_rows

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet")
EXAMPLE = '{"prompt": "What is 2 + 3?", "answer": "5"}'


def is_source(name: str) -> bool:
    """Is this task name a file or a hub dataset?"""
    return name.startswith(PREFIX) or name.endswith(SUFFIXES)


def read_rows(name: str) -> list[tuple[str, Row]]:
    """Every row with its place, such as "'t.jsonl' line 3". Raises InputError saying which file, line and key."""
    if name.startswith(PREFIX):
        rows = list(hub_rows(name))
    else:
        path = Path(name)
        read = {".jsonl": _lines, ".json": _document, ".parquet": _parquet}[path.suffix]
        rows = list(read(path))
    if not rows:
        raise InputError(f"task file '{name}' has no items; write one object a line, {EXAMPLE}")
    return rows


def _lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(_text(path).split("\n"), 1):  # splitlines would cut at characters that JSON allows
        where = f"'{path}' line {number}"
        if line.strip():
            yield where, _object(_json(line, where, "write one object a line"), where)


def _document(path: Path) -> Iterator[tuple[str, Row]]:
    rows = _json(_text(path), f"'{path}'", "write a list of objects")
    if not isinstance(rows, list):
        raise InputError(f"'{path}' is not a JSON list; write [{EXAMPLE}, ...]")
    for number, row in enumerate(rows, 1):
        yield f"'{path}' item {number}", _object(row, f"'{path}' item {number}")


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot read task file '{path}' ({reason}); give the path of a .parquet file") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"'{path}' row {number}", row


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read task file '{path}' ({error}); give the path of a UTF-8 {path.suffix} file"
        ) from error


def _json(text: str, where: str, advice: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON ({error.msg} at column {error.colno}); {advice}") from error
    except RecursionError:
        raise InputError(f"{where} is nested too deeply; {advice}") from None


def _object(row: Any, where: str) -> Row:
    if not isinstance(row, dict):
        raise InputError(f"{where} is not a JSON object; write {EXAMPLE}")
    return row
