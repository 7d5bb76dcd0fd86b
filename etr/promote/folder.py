"""The folder of a promoted run: recipe, settings in the host's terms, scripts, evidence and a README of its own."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from etr.environment import environment
from etr.errors import InputError
from etr.files import atomic_write, to_json
from etr.promote import llm, trl, verl
from etr.promote.decided import decided
from etr.promote.gate import Verdict, check, examine
from etr.promote.inputs import check_inputs
from etr.promote.job import Job
from etr.promote.quoting import refuse_marks
from etr.promote.recipes import FILE as RECIPE
from etr.promote.recipes import RECORD, copy_function, write_recipe
from etr.promote.terms import Translation, with_own
from etr.promote.texts import README, SETTINGS, Own, write_settings, write_texts
from etr.provenance import loss_hash, loss_sources
from etr.validate import FILE

TRANSLATE: dict[str, Callable[[Job], Translation]] = {
    "llm": llm.translate,
    "verl": verl.translate,
    "trl": trl.translate,
}


def promote(job: Job, out: Path, scorecard: Path | None = None, force: bool = False) -> tuple[Translation, Verdict]:
    """Write the folder `out` of a run that is ready to start; returns its terms and what the gate said.

    scorecard: its file or folder, None for where `etr validate` puts it; force: pass the gate all the same, on record.
    Raises InputError, before anything is written, when the gate refuses, when the host cannot do what the recipe or the
    settings ask for, when task or model are not there, and when `out` is not empty.
    """
    out = out.resolve()  # the name of `.` is empty
    own = trl.own_values(job.host_settings) if job.host == "trl" else job.host_settings
    translation = with_own(TRANSLATE[job.host](job), own, job.host)
    if job.host == "verl":
        refuse_marks(str(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"'{out}' is there already and not empty; choose another --out")
    verdict = examine(job.recipe, scorecard)
    check(verdict, force)
    translation = dataclasses.replace(translation, warnings=[*translation.warnings, *check_inputs(job)])
    half = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")  # a folder appears whole or not at all
    try:
        half.mkdir(parents=True)
        fill(half, job, translation, verdict)
        _move(half, out)
    except OSError as error:
        raise InputError(f"cannot make the folder '{out}' ({error.strerror}); choose another --out") from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return translation, verdict


def fill(out: Path, job: Job, translation: Translation, verdict: Verdict) -> None:
    """Write all files of a promoted folder."""
    copies = write_recipe(out, job.recipe)
    reward, copied = copy_function(out, job.config.reward)
    if copied is not None:
        copies[copied.name] = copied
    if verdict.path is not None:
        atomic_write(out / FILE, verdict.path.read_bytes())
    write_settings(out, job, translation, reward)
    write_texts(out, job, translation, Own(reward, sorted(copies)), verdict)
    write_record(out, job, verdict, copies)


def _move(half: Path, out: Path) -> None:
    """The finished folder to its place; a folder that is there is kept, since somebody may stand in it."""
    if not out.is_dir():
        half.replace(out)
        return
    for path in sorted(half.iterdir(), key=lambda path: path.name == RECORD):  # what makes it a promoted one comes last
        path.replace(out / path.name)


def write_record(out: Path, job: Job, verdict: Verdict, copies: dict[str, Path]) -> None:
    """promotion.json: what was checked, what was overridden, and what the start holds files and code against."""
    card = verdict.scorecard
    fixed = [RECIPE, *copies, *([] if card is None else [FILE])]
    others = sorted(path.name for path in out.iterdir() if path.name not in (*fixed, README))
    record = {
        "recipe": job.recipe.name,
        "host": job.host,
        "loss_hash": loss_hash(job.recipe),
        "loss_sources": loss_sources(job.recipe),
        "processes": job.processes,
        "decided": decided(job.host, out / SETTINGS[job.host]),
        "files": {name: _digest(out / name) for name in fixed},
        "editable": {name: _digest(out / name) for name in others},
        "copied_from": {name: str(path) for name, path in copies.items()},
        "scorecard": None if card is None else {"from": str(verdict.path), "passed": card.passed,
                                                "loss_hash": card.loss_hash},
        "refused": list(verdict.refused),
        "warnings": list(verdict.warnings),
        "promoted": datetime.now().astimezone().isoformat(timespec="seconds"),
        "environment": environment(),
    }  # fmt: skip
    atomic_write(out / RECORD, to_json(record, indent=2) + "\n")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
