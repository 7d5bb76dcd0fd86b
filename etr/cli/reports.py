"""`etr report` and `etr bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from etr.cli.options import console, print_table, show_report


def report(folder: Annotated[Positional[Path], arg(metavar="FOLDER")]) -> None:
    """Write report.html for a run, or one report for a folder that holds several. Example: etr report runs/demo"""
    show_report(folder)


def bench(what: Positional[Literal["toy", "loss"]], json: Path | None = None, threads: int = 1) -> None:
    """Measure speed side by side in one run and print ratios. Examples: etr bench toy; etr bench loss --json loss.json

    Args:
        what: toy: the toy trainer, the same in JAX, a Gymnasium loop. loss: each objective, a plain PPO.
        json: File to write the numbers to.
        threads: CPU threads that torch may use.
    """
    from etr.environment import environment
    from etr.files import atomic_write, to_json

    torch.set_num_threads(threads)
    _pin(threads)
    tables = _toy() if what == "toy" else _loss()
    for title, rows in tables.items():
        header = list(rows[0])
        print_table(title, header, [[_cell(row[name]) for name in header] for row in rows])
    if json is not None:
        atomic_write(
            json, to_json({"bench": what, **tables, "environment": environment(), "cores": os.cpu_count()}, indent=1)
        )


def _pin(cores: int) -> None:
    """Keep this process on as many cores as it has threads: a peer's library may otherwise use them all."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _toy() -> dict[str, list[dict[str, Any]]]:
    from etr.bench.toy import PEERS, bench_growth, bench_memory, bench_toy

    speed = bench_toy()
    if not any(row["what"] in PEERS for row in speed):
        console.print("JAX is not installed, so its part is left out; to have it: pip install jax")
    return {
        "speed, 16 prompts x 10 arms, groups of 16, 4 updates": speed,
        "milliseconds of an iteration when one size doubles: linear is 2": bench_growth(),
        "memory": bench_memory(),
    }


def _loss() -> dict[str, list[dict[str, Any]]]:
    from etr.bench.loss import bench_loss

    return {"loss and gradient of 64 x 1024 tokens": bench_loss()}


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


COMMANDS = {"report": report, "bench": bench}
