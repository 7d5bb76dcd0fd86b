"""`etr observe`: a run's metrics, of this project or of another, read with the observatory's eyes."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.markup import escape
from tyro.conf import Positional, arg

from etr.cli.options import choose_out, console, print_table
from etr.errors import InputError
from etr.observatory import Alarm, alarms
from etr.runs import METRICS, is_run

Columns = dict[str, list[float]]  # metric -> one value per row, NaN where it was not logged

DEAD, CLIPPED = "group/homogeneous_frac", "region/zero_grad_frac"

# Names of the same thing in the logs of this project, TRL, verl and rasbt/reasoning-from-scratch.
ALIASES = {
    "step": ("step", "global_step", "training/global_step"),
    "entropy": ("entropy", "entropy_avg", "actor/entropy", "actor/entropy_loss"),
    "reward": ("reward", "reward_avg", "critic/score/mean", "critic/rewards/mean"),
    DEAD: (DEAD, "frac_reward_zero_std"),
    CLIPPED: (CLIPPED, "zero_grad_frac"),
}
ONE_GROUP = "adv_std"  # of a log with one group a step: 0 says that the group was homogeneous
SHOWN = {"dead groups": DEAD, "clipped": CLIPPED, "ESS / N": "policy/effective_share"}  # means over a run


def observe(
    source: Annotated[Positional[Path], arg(metavar="FOLDER|FILE")],
    vocab_size: int | None = None,
    out: Path | None = None,
) -> None:
    """Entropy, groups and alarms of a finished or running run, with pictures.

    Examples: etr observe runs/demo; etr observe metrics.csv --vocab-size 151936

    Args:
        source: Folder of a toy or LLM run, or a .csv or .jsonl file with columns such as step, entropy, reward.
        vocab_size: Number of tokens V, to compare entropy with its largest value ln V.
        out: Folder for the pictures; the run's own figures/, or runs/<name>-<time> for a file.
    """
    if vocab_size is not None and vocab_size < 2:
        raise InputError(f"vocab_size is {vocab_size}; give at least 2, or leave it out")
    runs = read_log(source)
    found = {name: ring(columns, vocab_size) for name, columns in runs.items()}
    print_runs(runs, f"Observed: {source}")
    for name, rung in found.items():
        for alarm in rung:
            which = f"{escape(name)}, " if len(runs) > 1 else ""
            text = f"[bold red]{alarm.kind}[/] ({which}step {alarm.step}): {escape(alarm.sentence)}."
            console.print(text, soft_wrap=True)
    if not any(found.values()):
        console.print("No alarm.")
    folder = out or (source / "figures" if is_run(source) else choose_out(None, f"observe-{source.stem}"))
    draw(runs, found, folder)
    console.print(f"Pictures: [bold]{escape(str(folder))}[/]", soft_wrap=True)


def read_log(source: Path) -> dict[str, Columns]:
    """The runs in a folder or file, each as columns by metric; those of a comparison are named environment/recipe.

    Columns of entropy, reward, steps and homogeneous groups get this project's names. Raises InputError for a file that
    is missing or broken, and for one without steps, or with neither entropy nor reward.
    """
    path = source / METRICS if source.is_dir() else source
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read '{path}' ({error}); give a run's folder, a .csv or a .jsonl file") from error
    rows = list(csv.DictReader(text.splitlines())) if path.suffix == ".csv" else list(_json_rows(text, path))
    columns = _columns(rows)
    names = dict.fromkeys(name.rpartition("/reward")[0] for name in columns if name.count("/") == 2)
    names = {name: None for name in names if name and f"{name}/reward" in columns}
    if not names:
        return {source.stem: _named(columns, path)}
    parts = {
        name: {key.removeprefix(f"{name}/"): values for key, values in columns.items() if key.startswith(f"{name}/")}
        for name in names
    }
    return {name: _named({"step": columns["step"], **part}, path) for name, part in parts.items()}


def print_runs(runs: Mapping[str, Columns], title: str) -> None:
    """One row per run; a column that no run has is left out."""
    shown = {head: key for head, key in SHOWN.items() if any(key in columns for columns in runs.values())}
    rows = []
    for name, columns in runs.items():
        ends = [_ends(columns.get(key, [])) for key in ("entropy", "reward")]
        means = [_mean(columns.get(key, [])) for key in shown.values()]
        rows.append([escape(name), str(len(columns["step"])), *ends, *means])
    note = "Entropy (nats per token) and reward: first and last row; the others: means over the run."
    print_table(title, ["run", "steps", "entropy", "reward", *shown], rows, note)


def ring(columns: Columns, vocab_size: int | None) -> list[Alarm]:
    """The alarms of one run."""
    steps = [int(step) for step in columns["step"]]
    entropy, reward, homogeneous = (columns.get(name) for name in ("entropy", "reward", DEAD))
    return alarms(steps, entropy, reward, homogeneous, vocab_size)


def draw(runs: Mapping[str, Columns], found: Mapping[str, Sequence[Alarm]], folder: Path) -> None:
    """Alarms of every run; budget, prediction and region where the observatory's metrics were logged."""
    from etr.plots import observatory as plots  # imports matplotlib
    from etr.plots.alarms import ALARMED, alarm_curves
    from etr.plots.files import save_figures

    figures = {}
    for name, columns in runs.items():
        slug, steps = name.replace("/", "-"), [int(step) for step in columns["step"]]
        drawn = {label: columns[key] for key, label in ALARMED.items() if key in columns}
        figures[f"alarms-{slug}"] = alarm_curves(steps, drawn, found[name], name)
        if "entropy/change" not in columns:
            continue
        curves = {key: torch.tensor([values], dtype=torch.float64) for key, values in columns.items()}
        figures[f"entropy-budget-{slug}"] = plots.entropy_budget(curves, steps, title=name)
        parts = plots.BY_PROBABILITY
        figures[f"entropy-budget-by-probability-{slug}"] = plots.entropy_budget(curves, steps, parts, name)
        pair = (curves["entropy/predicted"], curves["entropy/change"])
        figures[f"entropy-predicted-{slug}"] = plots.prediction_scatter(*pair, title=name)
        figures[f"region-{slug}"] = plots.width_and_occupancy({name.rpartition("/")[2]: curves})
    save_figures(figures, folder)


def _json_rows(text: str, path: Path) -> Iterable[dict[str, Any]]:
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(lines):  # cut off by a kill
                return
            raise InputError(f"'{path}' line {number} is not a row of metrics ({error}); mend the file") from error
        yield row


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """Columns that hold a number somewhere. A cell that was not logged repeats its neighbour; null and nan are NaN."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row if name):
        cells = [row.get(name, "") for row in rows]
        logged = [_number(cell) for cell in cells if cell != ""]
        if all(map(math.isnan, logged)):
            continue
        places = accumulate(int(cell != "") for cell in cells)
        columns[name] = [logged[max(place, 1) - 1] for place in places]
    return columns


def _number(cell: object) -> float:
    try:
        return float(cell) if isinstance(cell, int | float | str) else math.nan
    except ValueError:
        return math.nan


def _named(columns: Columns, path: Path) -> Columns:
    """With this project's names for what the observatory reads."""
    new = dict(columns)
    for name, aliases in ALIASES.items():
        for alias in [alias for alias in aliases if alias in columns][:1]:
            new[name] = columns[alias]
    if ONE_GROUP in columns:
        new[DEAD] = [float(value == 0) for value in columns[ONE_GROUP]]
    if "step" not in new or not {"entropy", "reward"} & new.keys() or any(map(math.isnan, new["step"])):
        raise InputError(
            f"'{path}' needs a whole-number step in every row and a column of entropy or reward; it has "
            f"{', '.join(columns) or 'no numbers'}"
        )
    last = sorted({int(step): i for i, step in enumerate(new["step"])}.items())  # a resumed run repeats steps
    return {name: [values[i] for _, i in last] for name, values in new.items()}


def _ends(values: Sequence[float]) -> str:
    numbers = [value for value in values if not math.isnan(value)]
    return f"{numbers[0]:.3g} → {numbers[-1]:.3g}" if numbers else "-"


def _mean(values: Sequence[float]) -> str:
    numbers = [value for value in values if not math.isnan(value)]
    return f"{math.fsum(numbers) / len(numbers):.3f}" if numbers else "-"


COMMANDS = {"observe": observe}
