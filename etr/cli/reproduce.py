"""`etr reproduce`: statements of the literature, recomputed and compared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
from rich.markup import escape
from rich.table import Table
from tyro.conf import arg

from etr.cli.options import console, progress_bar
from etr.files import atomic_write, to_json
from etr.reproduce import Result, check, select
from etr.reproduce.pages import as_json, as_markdown, counts, given, ours, reasons

COLOURS = {"reproduced": "green", "differs": "yellow", "not reproduced": "red"}


def reproduce(
    all_: Annotated[bool, arg(name="all")] = False,
    section: int | None = None,
    json: Path | None = None,
    page: Path | None = None,
) -> None:
    """Recompute published and derived statements: their number, ours with a 95 % interval, verdict.

    The exit status is 1 if a statement is not reproduced. Example: etr reproduce --section 4 --all

    Args:
        all_: Also the slow ones (minutes instead of seconds).
        section: One section: 1 gradients, 2 and 3 entropy, 4 clipping, 5 groups, 6 bounds, 7 policy cliff, 8 KL.
        json: Write every number to this file.
        page: Write the results as a page in Markdown to this file.
    """
    torch.set_num_threads(1)  # small tensors: more threads only hand work around
    statements = select(section, all_)
    results = []
    with progress_bar() as start:
        step = start("statements", len(statements))
        for i, statement in enumerate(statements, 1):
            results.append(check(statement))
            print_result(results[-1])
            step(i)
    console.print(f"{counts(results)}. Numbers: published, then ours. Sources and notes: --page FILE.")
    if json is not None:
        atomic_write(json, to_json(as_json(results), indent=1) + "\n")
    if page is not None:
        atomic_write(page, as_markdown(results))
    failed = [r.statement.id for r in results if r.verdict == "not reproduced"]
    if failed:
        print(f"etr: not reproduced: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def print_result(result: Result) -> None:
    """One statement with its verdict, and its numbers as a small table: name, published, ours."""
    s, colour = result.statement, COLOURS[result.verdict]
    head = f"[bold]{s.section} {s.id}[/bold]  [{colour}]{result.verdict}[/]  {result.seconds:.1f} s"
    console.print(f"{head}\n{escape(s.text)}")
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 2))
    for width in (44, 18, 22):
        table.add_column(width=width, overflow="fold")
    for t, m, a in zip(s.published, result.measured, result.agrees, strict=True):
        table.add_row(escape(t.name), given(t), ours(m) + ("" if a else " [red]✗[/]"))
    console.print(table)
    for reason in reasons(result):
        console.print(f"[yellow]{escape(reason)}[/]")
    console.print()


COMMANDS = {"reproduce": reproduce}
