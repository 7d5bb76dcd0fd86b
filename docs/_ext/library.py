"""The table of `etr compare --all` for the page on results."""

from __future__ import annotations

import json
from pathlib import Path

from etr.cli.census import cell
from etr.toy.census import CLIPPED, MEASURES

FOLDER = Path(__file__).parent.parent / "results"


def library() -> tuple[list[str], list[list[str]]]:
    """Header and rows: one line per objective, a cell for each environment and measure."""
    record = json.loads((FOLDER / "library.json").read_text())
    cells = {(row["env"], row["recipe"], row["metric"]): cell(row) for row in record["rows"]}
    columns = [(env, metric) for env in dict.fromkeys(env for env, _, _ in cells) for metric in (*MEASURES, CLIPPED)]
    names = sorted({name for _, name, _ in cells})
    header = ["objective", *(f"{env}: {metric}" for env, metric in columns)]
    return header, [[f"`{name}`", *(cells.get((env, name, metric), "-") for env, metric in columns)] for name in names]
