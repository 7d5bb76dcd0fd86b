"""The quick scorecard of every registered objective, as the page on scorecards quotes them.

    python docs/results/scorecards.py

Writes scorecards.json after each objective, and goes on where it was stopped; about 6 s of processor time for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import etr
from etr.environment import environment
from etr.files import atomic_write, to_json
from etr.recipe import load_recipe
from etr.toy.cache import Cache
from etr.validate import SUITE, Scorecard, validate

FILE = Path(__file__).parent / "scorecards.json"


def row(card: Scorecard) -> dict[str, Any]:
    """What is kept of a scorecard: the outcome, and each criterion's number with its interval."""
    found = {c["name"]: [c["outcome"], *(rounded(c[key]) for key in ("value", "low", "high"))] for c in card.criteria}
    return {"failed": card.failed, **found}


def rounded(value: float | None) -> float | None:
    """Four digits say enough."""
    return None if value is None else float(f"{value:.4g}")


def main() -> None:
    rows: dict[str, Any] = json.loads(FILE.read_text())["rows"] if FILE.exists() else {}
    for name in etr.list_objectives():
        if name not in rows:
            rows[name] = row(validate(load_recipe(name), quick=True, cache=Cache())[0])
            record = {"suite": SUITE, "quick": True, "rows": dict(sorted(rows.items())), "environment": environment()}
            atomic_write(FILE, to_json(record).replace("}, ", "},\n") + "\n")
            print(name, rows[name]["failed"] or "passed", flush=True)


if __name__ == "__main__":
    main()
