"""Surrogates: where the gradient dies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from etr.errors import InputError
from etr.plots.style import QUIET, End, finish, new_figure, objective_color, styled, text_color

KINDS = {"value": "objective", "coef": "gradient coefficient"}
SIGNS = {"pos": ("A = +1", "solid"), "neg": ("A = −1", (0, (2.5, 1.5)))}
MOST_COLUMNS = 4


@styled
def surrogate_curves(curves: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Objective and gradient coefficient against the ratio r for A = +1 and A = −1, a pair of panels per objective.

    curves: objective -> {"ratio", "value_pos", "value_neg", "coef_pos", "coef_neg"}, each `[points]`. All objectives
    share the scale of c, but not that of the objective, whose level means nothing across methods. Raises InputError
    if there is no objective or one of the five is missing.
    """
    if not curves:
        raise InputError("there is no surrogate to draw; give at least one objective")
    columns = min(MOST_COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = new_figure(1.3 + 2.2 * columns, 0.8 + 3.5 * rows)
    grid = figure.add_gridspec(2 * rows, columns)
    coefficients = _limits(curves)
    ends = {}
    for place, (name, data) in enumerate(curves.items()):
        row, column = divmod(place, columns)
        above, below = (figure.add_subplot(grid[2 * row + i, column]) for i in (0, 1))
        for axes, kind in ((above, "value"), (below, "coef")):
            named = _draw(axes, name, data, kind)
            if column == columns - 1:
                ends[axes] = named
            if column == 0:
                axes.set_ylabel(KINDS[kind])
        above.set_title(name, color=text_color(objective_color(name)))
        above.tick_params(labelbottom=False)
        below.set(xlabel="ratio r", ylim=coefficients)
        below.tick_params(labelleft=column == 0)
    note = "Above: objective of one token; below: c, its derivative by log π. A token with c = 0 is clipped: it"
    return finish(figure, f"{note} learns nothing.", ends)


def _draw(axes: Axes, name: str, data: Mapping[str, Tensor], kind: str) -> list[End]:
    color, ends = objective_color(name), []
    axes.axvline(1, color=QUIET, lw=0.8)
    axes.axhline(0, color=QUIET, lw=0.8)
    for sign, (label, dashes) in SIGNS.items():
        y = data[f"{kind}_{sign}"]
        axes.plot(data["ratio"], y, color=color, ls=dashes, label=label)
        ends.append(End(float(data["ratio"][-1]), float(y[-1]), label, color))
    axes.margins(x=0)
    return ends


def _limits(curves: Mapping[str, Mapping[str, Tensor]]) -> tuple[float, float]:
    """Limits that hold the coefficients of every objective; raises InputError if a curve is missing."""
    for name, data in curves.items():
        wanted = ("ratio", *(f"{kind}_{sign}" for kind in KINDS for sign in SIGNS))
        missing = [key for key in wanted if key not in data]
        if missing:
            raise InputError(f"curves of '{name}' lack {', '.join(missing)}; give them for every objective")
    values = torch.stack(
        [data[f"coef_{sign}"].aminmax()[i] for data in curves.values() for sign in SIGNS for i in (0, 1)]
    )
    low, high = float(values.min()), float(values.max())
    return low - 0.06 * (high - low), high + 0.06 * (high - low)
