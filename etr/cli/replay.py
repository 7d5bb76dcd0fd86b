"""`etr replay`: the first recorded update of a run, computed again by every path."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.markup import escape
from tyro.conf import Positional, arg

from etr.cli.options import console, print_table
from etr.errors import InputError, unknown

if TYPE_CHECKING:
    from etr.recorded import Recorded
    from etr.replays import Check, Outcome

COLOURS = {"bit-equal": "green", "agrees": "green", "differs": "red", "skipped": "dim"}


def replay(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    path: tuple[str, ...] = ("toy", "llm", "verl", "trl"),
    json: Path | None = None,
    png: Path | None = None,
) -> None:
    """Compute one recorded update of a run again by every path: loss, gradient by log-probs and region must agree.

    Ours must be bit-equal, hosts within 1e-6 of the largest gradient entry. Denominator, advantages and statistics are
    made again. Exit status 1 if anything disagrees, or if the code is not that of the record or of the scorecard.
    Example: etr replay runs/my-run --path toy llm --png replay.png

    Args:
        run: Folder of a run, finished or not, ours or promoted to verl or TRL; or its first_batch.safetensors.
        path: Which loss functions: toy, llm (this project's trainers), verl, trl (where those are installed).
        json: File to write the numbers to.
        png: Also draw gradient coefficient by log ratio, recorded and replayed, into this file.
    """
    from etr.recorded import load
    from etr.replays import PATHS, check_inputs, find_record, run_all
    from etr.replays.evidence import evidence

    for name in path:
        if name not in PATHS:
            raise InputError(unknown("path", name, PATHS))
    file = find_record(run)
    recorded = load(file)
    with console.status("") as status:
        outcomes, found = run_all(recorded, path, lambda name: status.update(f"replaying through {name}"))
    checks, (code, notes) = check_inputs(recorded), evidence(recorded, file)
    notes += _notes(recorded)
    _print(file, recorded, outcomes)
    _print_checks(checks, notes)
    wrong = any(outcome.disagrees for outcome in outcomes) or any(check.disagrees for check in checks)
    agrees = not wrong and all(code.values())
    if json is not None:
        _write_json(json, file, recorded, outcomes, {
            "checks": [vars(check) for check in checks], **code, "agrees": agrees, "notes": notes,
        })  # fmt: skip
    if png is not None and found:
        from etr.files import atomic_write
        from etr.plots.files import png as drawn
        from etr.replays.picture import replay_figure

        atomic_write(png, drawn(replay_figure(recorded, found)))
        console.print(f"Wrote {escape(str(png))}.")
    if not found:
        raise InputError(f"no path could replay '{file}'; add toy or llm to --path")
    if not agrees:
        raise SystemExit(1)


def _print(file: Path, recorded: Recorded, outcomes: Sequence[Outcome]) -> None:
    batch = recorded.batch
    rows, width = batch.log_probs.shape
    about = ", ".join(f"{name} {value}" for name, value in recorded.settings.items())
    console.print(
        f"{escape(recorded.recipe.name)} recorded by {recorded.host}: {rows} responses of up to {width} tokens in "
        f"{len(recorded.parts)} micro-batches, loss {_number(float(recorded.loss), 9)}; {escape(about)}",
        soft_wrap=True,
    )
    lines = [
        [o.path, _number(o.loss, 9), _number(o.of_loss), _number(o.gradient), _number(o.region), _verdict(o)]
        for o in outcomes
    ]
    header = ["path", "loss", "loss by", "gradient by", "region by", "verdict"]
    caption = (
        "Largest relative differences from the record: of the gradient against its largest entry, of the loss against "
        "the sum of the gradient's magnitudes, of a bound against 1 or itself."
    )
    print_table(f"Replay of {escape(str(file))}", header, lines, caption)
    for outcome in outcomes:
        if outcome.where:
            label = "skipped" if outcome.verdict == "skipped" else "first disagreement"
            console.print(f"{outcome.path} {label}: {escape(outcome.where)}", soft_wrap=True)


def _print_checks(checks: Sequence[Check], notes: Sequence[str]) -> None:
    same = [check.what for check in checks if check.verdict == "same"]
    if same:
        console.print(f"Made again, and the same: {escape(', '.join(same))}.", soft_wrap=True)
    for check in checks:
        if check.verdict != "same":
            style = "red" if check.disagrees else "dim"
            console.print(f"[{style}]{escape(check.what)} {check.verdict}[/]: {escape(check.where)}.", soft_wrap=True)
    for note in notes:
        console.print(escape(note), soft_wrap=True)


def _verdict(outcome: Outcome) -> str:
    return f"[{COLOURS[outcome.verdict]}]{outcome.verdict}[/]"


def _number(value: float, digits: int = 2) -> str:
    return "-" if math.isnan(value) else f"{value + 0.0:.{digits}g}"  # a loss of nothing is -0.0


def _notes(recorded: Recorded) -> list[str]:
    """What a reader of the numbers must know: rounding, a policy that had not moved."""
    from etr.replays import rounding

    notes = []
    if why := rounding(recorded):
        notes.append(f"Against the record 1e-6 is enough: {why}.")
    if not recorded.gradient.any():
        notes.append("No token had a gradient: all groups were right or all wrong, so this update proves little.")
    if recorded.moved == 0:
        notes.append("The policy was still the old one (r = 1 everywhere), so the region decided nothing here.")
    else:
        notes.append(f"The policy had moved by up to {recorded.moved:.3g} nats.")
    return notes


def _write_json(
    json: Path, file: Path, recorded: Recorded, outcomes: Sequence[Outcome], more: Mapping[str, object]
) -> None:
    from etr.environment import environment
    from etr.files import atomic_write, to_json

    record = {
        "record": str(file),
        "recipe": recorded.recipe.as_dict(),
        "host": recorded.host,
        "settings": dict(recorded.settings),
        "loss": float(recorded.loss),
        "moved": recorded.moved,
        "outcomes": [outcome.as_dict() for outcome in outcomes],
        **more,
        "environment": environment(),
    }
    atomic_write(json, to_json(record, indent=1) + "\n")
    console.print(f"Wrote {escape(str(json))}.")


COMMANDS = {"replay": replay}
