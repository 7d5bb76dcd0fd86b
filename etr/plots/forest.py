"""Comparisons: one dot and one interval per recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etr.errors import InputError
from etr.plots.style import SMALL, finish, new_figure, objective_color, styled, text_color
from etr.stats import FEWEST_SEEDS

MOST_COLUMNS = 3
Row = Mapping[str, Any]


@styled
def comparison_forest(rows: Sequence[Row], xlabel: str = "score", title: str = "") -> Figure:
    """Interquartile mean (dot) and 95 % interval (line) of each recipe, one panel per environment.

    rows: {"env", "recipe", "iqm", "low", "high"} and, if known, "n_seeds"; one per environment and recipe, all of the
    same measure. Every panel has its own scale. Raises InputError for no rows, a missing key, a repeated row or an
    interval from fewer than 3 seeds.
    """
    _check(rows)
    envs, recipes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("env", "recipe"))
    columns = min(MOST_COLUMNS, len(envs))
    lines = math.ceil(len(envs) / columns)
    figure = new_figure(1.4 + 2.7 * columns, 1.0 + lines * (0.8 + 0.42 * len(recipes)))
    grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axes in grid[len(envs) :]:
        axes.remove()
    for place, (axes, env) in enumerate(zip(grid, envs, strict=False)):
        _panel(axes, [row for row in rows if row["env"] == env], recipes)
        axes.set_title(env)
        if place >= len(envs) - columns:
            axes.set_xlabel(xlabel)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    seeds = sorted({row["n_seeds"] for row in rows if "n_seeds" in row})
    counts = f" n = {' or '.join(map(str, seeds))} seeds per environment." if seeds else ""
    note = "Dot: interquartile mean; line: its 95 % interval (bootstrap over seeds within each environment)."
    return finish(figure, f"{note}{counts} Scales differ between panels.")


def _panel(axes: Axes, rows: Sequence[Row], recipes: Sequence[str]) -> None:
    span = max(row["high"] for row in rows) - min(row["low"] for row in rows)
    decimals = min(6, max(2, 1 - math.floor(math.log10(span)))) if span > 0 else 2  # what the panel can resolve
    for row in rows:
        y, color = recipes.index(row["recipe"]), objective_color(row["recipe"])
        axes.plot([row["low"], row["high"]], [y, y], color=color, lw=2.2)
        axes.plot(row["iqm"], y, "o", color=color, ms=7)
        axes.annotate(
            f"{row['iqm']:.{decimals}f}",
            (row["iqm"], y),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=SMALL,
            color=text_color(color),
        )
    axes.set_ylim(len(recipes) - 0.6, -0.7)  # first recipe on top
    axes.set_yticks(range(len(recipes)), recipes, fontsize=SMALL + 0.5)
    for tick, recipe in zip(axes.yaxis.get_major_ticks(), recipes, strict=True):
        tick.label1.set_color(text_color(objective_color(recipe)))
    axes.margins(x=0.14)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=4)


def _check(rows: Sequence[Row]) -> None:
    if not rows:
        raise InputError("there are no rows to compare; give one per environment and recipe")
    for row in rows:
        missing = [key for key in ("env", "recipe", "iqm", "low", "high") if key not in row]
        if missing:
            raise InputError(f"a row of the comparison lacks {', '.join(missing)}: {dict(row)}")
        if row.get("n_seeds", FEWEST_SEEDS) < FEWEST_SEEDS:
            raise InputError(
                f"recipe '{row['recipe']}' on '{row['env']}' has {row['n_seeds']} seeds; an interval needs "
                f"at least {FEWEST_SEEDS}"
            )
    keys = [(row["env"], row["recipe"]) for row in rows]
    for key in keys:
        if keys.count(key) > 1:
            raise InputError(f"recipe '{key[1]}' has two rows for '{key[0]}'; give the rows of one measure only")
