"""`etr compare --all`: every objective in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import etr
from etr.cli.options import console, print_table, progress_bar
from etr.environment import environment
from etr.files import atomic_write, to_json
from etr.toy.cache import Cache
from etr.toy.census import CLIPPED, MEASURES, census, verdict
from etr.toy.config import ToyConfig

CAPTION = (
    "Interquartile mean over {seeds} seeds [95 % bootstrap interval], {steps} iterations at default settings; zero "
    "gradient: share of tokens with A ≠ 0 that are clipped. ▲ or ▼: above or below grpo on the same random numbers "
    "(sign-flip test, corrected by Holm for all objectives, p ≤ 0.05). Defaults were made for other scales: this "
    "table shows that each method runs and what it does here, not which one is better when tuned."
)


def compare_all(envs: tuple[str, ...], config: ToyConfig, out: Path | None, no_cache: bool) -> None:
    """Train every registered objective, print the table, and write it as JSON if there is a place for it."""
    torch.set_num_threads(1)  # the tensors are small
    names = etr.list_objectives()
    with progress_bar() as start:
        bars = lambda env, name: start(f"{name} on {env}", config.iterations)  # noqa: E731
        rows = census(names, envs, config, bars, None if no_cache else Cache())
    cells = {(row["env"], row["recipe"], row["metric"]): cell(row) for row in rows}
    columns = [(env, metric) for env in envs for metric in (*MEASURES, CLIPPED)]
    lines = [[name, *(cells.get((env, name, metric), "-") for env, metric in columns)] for name in names]
    caption = CAPTION.format(seeds=config.seeds, steps=config.iterations)
    print_table("All objectives", ["name", *(f"{env}: {metric}" for env, metric in columns)], lines, caption)
    if out is not None:
        record = {"seeds": config.seeds, "iterations": config.iterations, "rows": rows, "environment": environment()}
        atomic_write(out, to_json(record, indent=1) + "\n")
        console.print(f"Wrote {out}.")


def cell(row: dict[str, Any]) -> str:
    """One cell of the table: `.93 [.92, .94] ▲`."""
    if "lacks" in row:
        return "needs " + ", ".join(row["lacks"])
    mark = {"above": " ▲", "below": " ▼", "": ""}[verdict(row)]
    return "{iqm:.3f} [{low:.3f}, {high:.3f}]".format(**row) + mark
