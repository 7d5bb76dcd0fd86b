"""`etr report` and `etr bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from etr.cli.options import print_table, show_report


def report(folder: Annotated[Positional[Path], arg(metavar="FOLDER")]) -> None:
    """Write report.html for a run, or one report for a folder that holds several. Example: etr report runs/demo"""
    show_report(folder)


def bench(what: Positional[Literal["toy", "loss"]], json: Path | None = None, threads: int = 1) -> None:
    """Measure speed side by side in one run and print ratios. Examples: etr bench toy; etr bench loss --json loss.json

    Args:
        what: toy: the toy trainer against a plain Gymnasium loop. loss: every objective against a hand-written PPO.
        json: File to write the numbers to.
        threads: CPU threads that torch may use.
    """
    from etr.environment import environment
    from etr.files import atomic_write, to_json

    torch.set_num_threads(threads)
    rows = _toy() if what == "toy" else _loss()
    header = list(rows[0])
    print_table(f"bench {what}", header, [[_cell(row[name]) for name in header] for row in rows])
    if json is not None:
        atomic_write(
            json, to_json({"bench": what, "rows": rows, "environment": environment(), "cores": os.cpu_count()})
        )


def _toy() -> list[dict[str, Any]]:
    from etr.bench.toy import bench_toy

    return [{"measure": name, "value": value} for name, value in bench_toy().items()]


def _loss() -> list[dict[str, Any]]:
    from etr.bench.loss import bench_loss

    return bench_loss()


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


COMMANDS = {"report": report, "bench": bench}
