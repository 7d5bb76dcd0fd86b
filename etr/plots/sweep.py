"""Sweeps: where in the space of settings the score is high, and what each field does on average."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from etr.errors import InputError
from etr.plots.style import INK, QUIET, SMALL, finish, new_figure, styled

MOST_WRITTEN = 64  # with more squares than this the numbers in them could not be read
COLOURS = "viridis"  # even in lightness, so that it survives print and colour blindness
POINT = "#0072B2"


@styled
def sweep_map(
    cells: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    label: str,
    title: str = "",
    logarithmic: Collection[str] = (),
) -> Figure:
    """The value of every cell over its first two fields: squares for a grid, dots for cells drawn at random.

    cells: field -> value for each; values: one number per cell. Where cells share both fields, as when a third one is
    swept, a square shows their mean. logarithmic: fields that get such an axis where there are dots. Raises InputError
    for fewer than two fields and when the lengths do not fit.
    """
    fields = list(cells[0]) if cells else []
    if len(fields) < 2 or len(cells) != len(values):
        raise InputError(f"{len(cells)} cells with fields {fields} and {len(values)} values; give 2 fields or more")
    x, y = fields[:2]
    places: dict[tuple[Any, Any], list[float]] = {}
    for cell, value in zip(cells, values, strict=True):
        places.setdefault((cell[x], cell[y]), []).append(value)
    means = {place: sum(found) / len(found) for place, found in places.items()}
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    colours = Normalize(min(means.values()), max(means.values()))
    xs, ys = (_in_order({cell[field] for cell in cells}) for field in (x, y))
    whole = len(means) == len(xs) * len(ys)
    drawn = _squares(axes, means, xs, ys, colours) if whole else _dots(axes, means, colours)
    axes.set(title=title, xlabel=x, ylabel=y)
    if not whole:
        axes.set(xscale="log" if x in logarithmic else "linear", yscale="log" if y in logarithmic else "linear")
        for axis, field in ((axes.xaxis, x), (axes.yaxis, y)):
            if field in logarithmic:
                axis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.set_minor_formatter(NullFormatter())
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    figure.colorbar(drawn, ax=axes, label=label, aspect=28)
    shared = f" {', '.join(fields[2:])}: averaged over its values." if whole and len(fields) > 2 else ""
    note = "One square" if whole else "One dot"
    return finish(figure, f"{note} per setting; colour: {label}, interquartile mean over seeds.{shared}")


@styled
def field_effects(rows: Sequence[Mapping[str, Any]], label: str, title: str = "") -> Figure:
    """The score at each value of each field, averaged over all cells that have it: one panel per field.

    rows: {"field", "value", "iqm", "low", "high", "n_cells"}, all of one measure. Raises InputError for no rows.
    """
    if not rows:
        raise InputError("there are no effects to draw; give one row per field and value")
    fields = list(dict.fromkeys(row["field"] for row in rows))
    figure = new_figure(1.2 + 2.6 * len(fields), 3.4)
    panels = figure.subplots(1, len(fields), sharey=True, squeeze=False)[0]
    for axes, field in zip(panels, fields, strict=True):
        of_field = [row for row in rows if row["field"] == field]
        for place, row in enumerate(of_field):
            axes.plot([place, place], [row["low"], row["high"]], color=POINT, lw=2.2)
        axes.plot(range(len(of_field)), [row["iqm"] for row in of_field], "o-", color=POINT, ms=6, lw=0.8)
        slanted = max(len(row["value"]) for row in of_field) > 6
        axes.set_xticks(range(len(of_field)), [row["value"] for row in of_field], rotation=30 if slanted else 0)
        axes.set(title=field, xlim=(-0.5, len(of_field) - 0.5))
    panels[0].set_ylabel(label)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    note = "Dot: interquartile mean of the seeds' scores, each averaged over all cells with that value; line: its 95 %"
    return finish(figure, f"{note} interval (bootstrap over seeds within each environment). One scale for all panels.")


def _squares(
    axes: Axes, means: Mapping[tuple[Any, Any], float], xs: list[Any], ys: list[Any], colours: Normalize
) -> Any:
    drawn = axes.imshow(
        [[means[x, y] for x in xs] for y in ys], norm=colours, cmap=COLOURS, origin="lower", aspect="auto"
    )
    axes.set_xticks(range(len(xs)), [str(x) for x in xs])
    axes.set_yticks(range(len(ys)), [str(y) for y in ys])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(means) <= MOST_WRITTEN:
        span = colours.vmax - colours.vmin if colours.vmax is not None and colours.vmin is not None else 0.0
        decimals = 2 if span > 0.3 else 3
        for (x, y), value in means.items():
            ink = "white" if span == 0 or (value - (colours.vmin or 0.0)) / span < 0.6 else INK
            place = (xs.index(x), ys.index(y))
            axes.text(*place, f"{value:.{decimals}f}", ha="center", va="center", color=ink, fontsize=SMALL)
    return drawn


def _dots(axes: Axes, means: Mapping[tuple[Any, Any], float], colours: Normalize) -> Any:
    xs, ys = ([place[i] for place in means] for i in (0, 1))
    return axes.scatter(
        xs, ys, c=list(means.values()), norm=colours, cmap=COLOURS, s=60, edgecolors=QUIET, linewidths=0.5, zorder=2
    )


def _in_order(values: set[Any]) -> list[Any]:
    """Numbers by size, anything else by its text."""
    numeric = all(isinstance(value, int | float) for value in values)
    return sorted(values) if numeric else sorted(values, key=str)
