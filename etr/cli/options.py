"""Pieces that several commands share: recipes with overrides, progress bars, tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from etr.errors import InputError
from etr.recipe import Recipe, load_recipe
from etr.references import ask_for_class
from etr.runs import RunFolder, default_out, is_run, read_config

console = Console(highlight=False)


def recipe_with(source: str, assignments: Sequence[str]) -> Recipe:
    """A recipe with `field=value` assignments applied; values are read as YAML scalars."""
    if source.endswith(".py"):
        ask_for_class(source)
    return load_recipe(source, parse_assignments(assignments))


def parse_assignments(assignments: Sequence[str]) -> dict[str, object]:
    """`["micro=0.3"]` to `{"micro": 0.3}`. Raises InputError for anything else, and for a field given twice.

    >>> parse_assignments(["micro=0.3", "optimizer.lr=1e-5", "dual_clip=null"])
    {'micro': 0.3, 'optimizer.lr': 1e-05, 'dual_clip': None}
    """
    values: dict[str, object] = {}
    for text in assignments:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise InputError(f"--set got '{text}'; write field=value, for example micro=0.3")
        check_new("--set", name, values)
        values[name] = _scalar(value)
    return values


def parse_grid(assignments: Sequence[str], flag: str = "--grid") -> dict[str, list[object]]:
    """`["micro=0,0.5"]` to `{"micro": [0, 0.5]}`. Raises InputError for anything else, and for a field given twice.

    >>> parse_grid(["micro=0,0.5", "optimizer.lr=1e-2"])
    {'micro': [0, 0.5], 'optimizer.lr': [0.01]}
    """
    values: dict[str, list[object]] = {}
    for text in assignments:
        name, equals, listed = text.partition("=")
        items = listed.split(",")
        if not (name and equals and all(item.strip() for item in items)):
            raise InputError(f"{flag} got '{text}'; write field=value,value, for example micro=0,0.25,0.5")
        check_new(flag, name, values)
        values[name] = [_scalar(item) for item in items]
    return values


def check_new(flag: str, name: str, given: Iterable[str]) -> None:
    """Raise InputError if a field is given already, also under its other spelling: lr is optimizer.lr."""
    section, _, field = name.rpartition(".")
    for other in given:
        first, _, same = other.rpartition(".")
        if same == field and (first == section or "" in (first, section)):
            raise InputError(f"{flag} got '{other}' and '{name}', which are one field; give it once")


def _scalar(text: str) -> object:
    """A YAML scalar; YAML reads 1e-5 as a string, which is a number here."""
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value
    except (ValueError, yaml.YAMLError):
        return text


def choose_out(out: Path | None, name: str) -> Path:
    """The given folder, or a new one under runs/."""
    return out or default_out(name)


def comparison_folder(out: Path | None, name: str, config: Mapping[str, object], overwrite: bool) -> RunFolder:
    """The given folder, or a new one under runs/, open for a comparison; an unfinished one in it is begun again.

    Raises InputError as `RunFolder.create` does.
    """
    path = choose_out(out, name)
    if is_run(path) and not overwrite:
        if (path / "comparison.json").exists() or read_config(path).get("kind") != "compare":
            raise InputError(
                f"'{path}' already holds a run; choose another --out or add --overwrite to replace it (finished runs "
                "come from the cache)"
            )
        overwrite = True  # it was interrupted, and what it had trained is in the cache
    return RunFolder.create(path, {"kind": "compare", **config}, overwrite=overwrite)


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int], Callable[[int], None]]]:
    """Gives `start(label, total)`, which adds a bar and returns the function that moves it to a step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:

        def start(label: str, total: int) -> Callable[[int], None]:
            task = progress.add_task(label, total=total)
            return lambda step: progress.update(task, completed=step)

        yield start


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """A table on the console; columns of numbers are right-aligned."""
    table = Table(title=title, title_justify="left", title_style="bold", caption=caption, caption_justify="left")
    for i, name in enumerate(header):
        numeric = all(row[i][:1] in "0123456789-" and row[i] != "-" for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def interval(row: Mapping[str, float], value: str) -> str:
    """`0.912 [0.905, 0.920]` from a row with an estimate and its ends."""
    return f"{row[value]:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def show_report(folder: Path) -> None:
    """Write the report of a folder and say where it is."""
    from etr.report import collect, write_report  # imports matplotlib

    console.print(f"Report: [bold]{write_report(folder, collect(folder))}[/bold]", soft_wrap=True)
