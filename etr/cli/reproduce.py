"""`etr reproduce`: statements of the literature, recomputed and compared."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.markup import escape

from etr.cli.options import print_table, progress_bar
from etr.files import atomic_write, to_json
from etr.reproduce import Result, check, select
from etr.reproduce.pages import as_json, as_markdown, counts, given, ours, reasons

COLOURS = {"reproduced": "green", "differs": "yellow", "not reproduced": "red"}


def reproduce(
    all_: bool = False, section: int | None = None, json: Path | None = None, page: Path | None = None
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
            step(i)
    print_results(results)
    if json is not None:
        atomic_write(json, to_json(as_json(results), indent=1) + "\n")
    if page is not None:
        atomic_write(page, as_markdown(results))
    failed = [r.statement.id for r in results if r.verdict == "not reproduced"]
    if failed:
        print(f"etr: not reproduced: {', '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def print_results(results: Sequence[Result]) -> None:
    """A row for every statement, followed by one for each of its numbers."""
    rows = []
    for r in results:
        s = r.statement
        verdict = f"[{COLOURS[r.verdict]}]{r.verdict}[/]"
        rows.append([f"[bold]{s.section} {s.id}[/bold]: {escape(s.text)}", "", "", verdict, f"{r.seconds:.1f} s"])
        for t, m, a in zip(s.published, r.measured, r.agrees, strict=True):
            rows.append([f"  {escape(t.name)}", given(t), ours(m), "" if a else "✗", ""])
        rows += [[f"  [yellow]{escape(reason)}[/]", "", "", "", ""] for reason in reasons(r)]
    header = ["statement", "published", "ours", "verdict", "time"]
    print_table("Reproduced statements", header, rows, counts(results) + ". Sources and notes: --page FILE.")


COMMANDS = {"reproduce": reproduce}
