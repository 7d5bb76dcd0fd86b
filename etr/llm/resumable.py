"""Which run `--resume auto` continues."""

from __future__ import annotations

from pathlib import Path

from etr.errors import InputError
from etr.files import read_json
from etr.llm import keep
from etr.llm.held_out import RESULTS
from etr.llm.loop import CHECKPOINTS
from etr.runs import is_run, read_config

AUTO = "auto"
DEPTHS = ("", "*/", "*/*/")  # of a run below the folder that is searched


def to_continue(resume: str, out: Path | None, steps: int | None = None) -> Path | None:
    """The run that --resume names, a folder or `auto`; None if `auto` is to start the run in `out`.

    It is when `out` is not there yet, or holds a run that ended before its first checkpoint.
    """
    if resume != AUTO:
        return Path(resume)
    if out is not None and (not out.exists() or nothing_saved(out)):
        return None
    return find(Path("runs") if out is None else out, steps)


def nothing_saved(run: Path) -> bool:
    """Is this an LLM run without any checkpoint? Nothing is lost when such a run is begun again."""
    return is_run(run) and read_config(run).get("kind") == "llm" and not any((run / CHECKPOINTS).glob("[!.]*"))


def find(root: Path, steps: int | None = None) -> Path:
    """The run in `root` (itself a run, or a folder of runs) whose newest checkpoint is the latest and that is not done.

    steps: the number to train to, where it is not the recorded one. Raises InputError when there is none.
    """
    folders = [path.parent for depth in DEPTHS for path in root.glob(depth + CHECKPOINTS)]
    runs = [run for run in folders if is_run(run) and can_continue(run, steps)]
    if not runs:
        raise InputError(
            f"no run in '{root}' can continue: a run needs a checkpoint and steps that are left; start one without "
            "--resume, or give --extend-to for a finished one"
        )
    return max(runs, key=lambda run: keep.finished(run / CHECKPOINTS)[-1].stat().st_mtime_ns)


def can_continue(run: Path, steps: int | None = None) -> bool:
    """Is this an LLM run with a checkpoint, and something left to train or to evaluate?"""
    record = read_config(run)
    checkpoints = keep.finished(run / CHECKPOINTS)
    if record.get("kind") != "llm" or not checkpoints:
        return False
    settings = record.get("settings", {})
    if keep.step_of(checkpoints[-1]) < (steps or settings.get("steps", 0)):
        return True
    evaluated = (run / RESULTS).exists() and "after" in read_json(run / RESULTS)
    return settings.get("eval_items", 0) > 0 and not evaluated
