"""One run of a real model: one seed, so lines and no bands."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from etr.errors import InputError
from etr.plots.style import QUIET, SMALL, End, finish, new_figure, objective_color, styled

PANELS = {
    "reward": ("Mean reward of the sampled answers", "reward"),
    "entropy": ("Entropy", "nats per token"),
    "kl": ("KL of one update, old to new policy", "nats per token"),
    "zero_grad_frac": ("Share of tokens without gradient", "share"),
}


@styled
def llm_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], title: str = "") -> Figure:
    """Reward, entropy, KL and share of tokens without gradient per step: each step thin, the moving mean thick.

    runs: name -> rows of metrics with "step" and the keys of `PANELS`, NaN or absent where not measured. The moving
    mean covers the last tenth of the run's steps. Raises InputError if no run has a row.
    """
    if not any(runs.values()):
        raise InputError("there are no steps to draw; train for at least one step")
    figure = new_figure(9.6, 6.0)
    grid = figure.subplots(2, 2, sharex=True).flatten()
    window = max(1, max(map(len, runs.values())) // 10)
    ends = {}
    for axes, (metric, (name, unit)) in zip(grid, PANELS.items(), strict=True):
        ends[axes] = [
            end for run, rows in reversed(list(runs.items())) for end in _line(axes, run, rows, metric, window)
        ]
        axes.set(title=name, ylabel=unit)
        axes.margins(x=0.01)
        axes.locator_params(axis="x", integer=True)
        if not ends[axes]:
            axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", fontsize=SMALL, color=QUIET)
    for axes in grid[2:]:
        axes.set_xlabel("training step")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    return finish(figure, f"{_note(window)} One seed per run, so the picture cannot tell luck from effect.", ends)


def moving_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values up to each one, of those which are not NaN.

    >>> moving_mean([1.0, 3.0, float("nan"), 5.0], window=2)
    [1.0, 2.0, 3.0, 5.0]
    """
    means = []
    for stop in range(1, len(values) + 1):
        recent = [value for value in values[max(0, stop - window) : stop] if not math.isnan(value)]
        means.append(sum(recent) / len(recent) if recent else math.nan)
    return means


def _line(axes: Axes, name: str, rows: Sequence[Mapping[str, float]], metric: str, window: int) -> list[End]:
    steps, values = [row["step"] for row in rows], [row.get(metric, math.nan) for row in rows]
    if all(map(math.isnan, values)):
        return []
    color, means = objective_color(name), moving_mean(values, window)
    if window > 1:
        axes.plot(steps, values, color=color, lw=0.8, alpha=0.4)
    axes.plot(steps, means, color=color, label=name, marker="o" if len(rows) < 3 else "")
    last = max(i for i, mean in enumerate(means) if not math.isnan(mean))
    return [End(steps[last], means[last], name, color)]


def _note(window: int) -> str:
    return "Each step." if window == 1 else f"Thin: each step; thick: mean of the last {window} steps."
