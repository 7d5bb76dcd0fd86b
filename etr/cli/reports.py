"""`etr report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from etr.cli.options import show_report


def report(folder: Annotated[Positional[Path], arg(metavar="FOLDER")]) -> None:
    """Write report.html for a run, or one report for a folder that holds several. Example: etr report runs/demo"""
    show_report(folder)


COMMANDS = {"report": report}
