"""From run folders to sections: what each kind of run left behind, and what may be read from it."""

from __future__ import annotations

import os
from pathlib import Path

from etr.errors import InputError, unknown
from etr.report import comparison, llm
from etr.report.page import Section
from etr.runs import is_run, read_config

DEEPEST = 3  # a folder of runs is not searched further down than this
KINDS = {"compare": comparison.sections, "llm": llm.sections}


def collect(folder: Path) -> list[Section]:
    """Sections for one run, or for all runs in a folder: comparisons first, and LLM runs side by side if several.

    Among several runs, comparisons that were interrupted are left out: there is nothing to read in them.
    Raises InputError if the folder is missing, holds no run, or holds one that is broken or of an unknown kind.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder '{folder}'; give the folder of a run, or one that holds runs")
    runs = find_runs(folder)
    if not runs:
        raise InputError(f"'{folder}' holds no run; give the folder of a run, or one that holds runs")
    kinds = {run: _kind(run) for run in runs}
    finished = [run for run in runs if kinds[run] != "compare" or (run / comparison.FILE).exists()]
    by_kind: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    for run in finished or runs[:1]:
        by_kind[kinds[run]].append(run)
    sections = []
    for kind, paths in by_kind.items():
        for path in paths:
            source = "" if path == folder else os.path.relpath(path, folder)
            sections += KINDS[kind](path, source)
    return sections + llm.side_by_side(by_kind["llm"])


def find_runs(folder: Path, depth: int = DEEPEST) -> list[Path]:
    """The run folders in a folder, itself included, by name; hidden folders and links are not followed."""
    if is_run(folder):
        return [folder]
    if depth == 0:
        return []
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [run for path in inner if not path.name.startswith(".") for run in find_runs(path, depth - 1)]


def _kind(run: Path) -> str:
    kind = read_config(run).get("kind")
    if kind not in KINDS:
        raise InputError(f"{unknown('kind of run', str(kind), KINDS)}, in '{run}'")
    return str(kind)
