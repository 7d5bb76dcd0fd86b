"""`etr sweep`: one recipe at many settings, on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from etr.cli.options import (
    check_new,
    comparison_folder,
    interval,
    parse_grid,
    print_table,
    progress_bar,
    recipe_with,
    show_report,
)
from etr.cli.toy import Envs, Set, print_measures
from etr.errors import InputError
from etr.recipe import Recipe
from etr.runs import RunFolder
from etr.toy.cache import Cache
from etr.toy.compare import check_request
from etr.toy.config import ToyConfig
from etr.toy.measures import LEVEL
from etr.toy.sweep import Cell, Span, Sweep, cell_recipes, grid_cells, random_cells, sweep
from etr.toy.tables import write_results

MOST_SHOWN = 10  # cells in the table and in the report; the files hold all
Grid = Annotated[tuple[str, ...], arg(metavar="FIELD=VALUE,VALUE ...")]
Ranges = Annotated[tuple[str, ...], arg(metavar="FIELD=LOW:HIGH[:log] ...")]


def sweep_command(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    grid: Grid = (),
    random: int = 0,
    ranges: Ranges = (),
    envs: Envs = ("bandit-spread",),
    rank_by: Literal["final", "learning"] = "final",
    set_: Set = (),
    config: OmitArgPrefixes[ToyConfig] = ToyConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    level: float = LEVEL,
    no_cache: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Sweep any fields of a recipe: all combinations of a grid, or settings drawn at random from ranges.

    Examples: etr sweep etr --grid micro=0,0.25,0.5 optimizer.lr=0.05,0.1 --env bandit-spread

    etr sweep grpo --random 32 --ranges eps_high=0.1:0.5 optimizer.lr=0.01:1:log optimizer.updates=1:8

    An interrupted sweep goes on where it was when the same command is given again: finished cells are in the cache.

    Args:
        recipe: An objective by name, a .yaml file, module:Class or path/to/file.py:Class.
        grid: Fields with the values to combine.
        random: Number of settings to draw instead of a grid.
        ranges: Fields with the ends of their range, or a list of values to choose from, for --random.
        envs: Toy environments.
        rank_by: Score that makes a cell the best: after training, or averaged over it.
        set_: Fields to change in every cell.
        config: Settings of the runs.
        level: Score at which the matched entropies are read.
        no_cache: Train also what runs/.cache (or the folder in ETR_CACHE) holds already, and store nothing.
        out: Folder for the results; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
    """
    torch.set_num_threads(1)  # the tensors are small: with more threads the hand-over costs more than the work
    loaded = recipe_with(recipe, set_)
    spans = parse_ranges(ranges)
    cells = choose_cells(loaded, grid, random, spans)
    check_request(cell_recipes(loaded, cells), envs, config, level)  # before there is a folder
    cache = None if no_cache else Cache()
    record = {"recipe": loaded.as_dict(), "grid": list(grid), "random": random, "ranges": list(ranges)}
    settings = {"envs": list(envs), "settings": asdict(config), "level": level}
    with comparison_folder(out, f"sweep-{loaded.name}", {**record, **settings}, overwrite) as folder:
        with progress_bar() as start:
            moved = start(f"{len(cells)} cells", len(cells) * len(envs) * config.iterations)
            result = sweep(loaded, cells, envs, config, moved, cache, level)
        what = f"{rank_by} score"
        save(folder, result, what, [field for field, span in spans.items() if isinstance(span, Span) and span.log])
        print_sweep(result, what, config.seeds, level)
    show_report(folder.path)


def choose_cells(
    recipe: Recipe, grid: Sequence[str], random: int, spans: dict[str, Span | Sequence[object]]
) -> list[Cell]:
    """The cells of a grid or of a random search. Raises InputError unless it is one of the two."""
    if random < 0:
        raise InputError(f"--random is {random}; give at least 1")
    if bool(grid) == bool(random) or bool(random) != bool(spans):
        raise InputError("a sweep is --grid field=value,value or --random N --ranges field=low:high; give one of them")
    return grid_cells(parse_grid(grid)) if grid else random_cells(recipe, spans, random, seed=0)


def parse_ranges(texts: Sequence[str]) -> dict[str, Span | Sequence[object]]:
    """`["lr=0.01:1:log", "updates=2,4"]` to a `Span` and a list by field. Raises InputError for anything else.

    >>> parse_ranges(["micro=0:1"])
    {'micro': Span(low=0.0, high=1.0, log=False)}
    """
    spans: dict[str, Span | Sequence[object]] = {}
    for text in texts:
        field, _, given = text.partition("=")
        low, *rest = given.split(":")
        if not rest:
            found = parse_grid([text], "--ranges")
            check_new("--ranges", field, spans)
            spans |= found
            continue
        check_new("--ranges", field, spans)
        try:
            high, *log = rest
            spans[field] = Span(float(low), float(high), {(): False, ("log",): True}[tuple(log)])
        except (ValueError, KeyError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"--ranges got '{text}'; write field=low:high or field=low:high:log") from None
    return spans


def save(folder: RunFolder, result: Sweep, what: str, logarithmic: Sequence[str]) -> None:
    """Write the best cells for the report, one row per cell and seed, the effects and the pictures."""
    from etr.plots.files import save_figures
    from etr.plots.sweep import field_effects, sweep_map

    ranked = result.ranking(what)
    best = {row["recipe"] for row in ranked[:MOST_SHOWN]}
    rows = [row for name in (r["recipe"] for r in ranked) for row in result.rows if row["recipe"] == name in best]
    folder.write_json("sweep.json", {"cells": result.cells, "rows": result.rows, "effects": result.effects})
    write_results(folder.path, result.seeds)
    figures = {"effects": field_effects([row for row in result.effects if row["metric"] == what], what)}
    cells = [result.cells[row["recipe"]] for row in ranked]
    if len(cells[0]) > 1:
        figures["map"] = sweep_map(cells, [row["iqm"] for row in ranked], what, logarithmic=logarithmic)
    save_figures(figures, folder.figures)
    folder.write_json("comparison.json", {"rows": rows, "improvement": []})  # last: it marks a finished run


def print_sweep(result: Sweep, what: str, seeds: int, level: float) -> None:
    """The best cells with their intervals, then what each field did on average."""
    ranked = result.ranking(what)
    order = {row["recipe"]: place for place, row in enumerate(ranked)}
    rows = sorted((r for r in result.rows if r["env"] == ranked[0]["env"]), key=lambda row: order[row["recipe"]])
    note = (
        f"The best of {len(order)} cells by {what}, chosen by these same seeds: expect a little less of it on others "
        "(--first-seed). "
    )
    print_measures("Best cells", rows, seeds, level, note, MOST_SHOWN)
    measures = list(dict.fromkeys(row["metric"] for row in result.effects))
    found = {(row["field"], row["value"], row["metric"]): row for row in result.effects}
    lines = [
        [*key, str(found[*key, measures[0]]["n_cells"]), *(interval(found[*key, m], "iqm") for m in measures)]
        for key in dict.fromkeys((row["field"], row["value"]) for row in result.effects)
    ]
    caption = (
        "Scores averaged over all cells that have the value, then interquartile mean over seeds [95 % interval]. The "
        "interval is over seeds: with cells drawn at random, the groups differ in the other fields too."
    )
    print_table("Main effect of each field", ["field", "value", "cells", *measures], lines, caption)


COMMANDS = {"sweep": sweep_command}
