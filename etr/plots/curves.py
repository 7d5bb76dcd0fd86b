"""Learning curves: what happened, how sure that is over seeds, and what the reward was paid with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Generator, Tensor

from etr.errors import InputError
from etr.plots.style import End, finish, new_figure, objective_color, styled
from etr.stats import FEWEST_SEEDS, Band, iqm_band

FEW_PATHS = 8  # single seeds drawn behind a mean: enough to see their spread
MOST_POINTS = 2000  # more steps than pixels: every k-th is drawn
Curves = Mapping[str, Tensor]  # recipe -> [seeds, steps]

# Metric of the dashboard: its place in a grid of four rows and two columns, its title and the name of its axis. The
# two signs of A are different questions, so they get a panel each instead of two kinds of line in one.
PANELS = {
    "reward": ((slice(0, 2), 0), "Expected reward", "reward"),
    "entropy": ((slice(0, 2), 1), "Entropy", "nats per token"),
    "kl_new_to_old": ((slice(2, 4), 0), "KL of one update, new to old policy", "nats per token"),
    "region/zero_grad_frac_pos": ((slice(2, 3), 1), "Share of tokens without gradient", "A > 0"),
    "region/zero_grad_frac_neg": ((slice(3, 4), 1), "", "A < 0"),
}


@styled
def seed_bands(curves: Curves, steps: Sequence[int], ylabel: str, title: str) -> Figure:
    """One line per recipe, the interquartile mean over seeds, with its 95 % bootstrap band.

    curves: `[seeds, steps]` by recipe; NaN where a seed has no value. With fewer than 3 seeds every seed is a thin
    line instead, and the caption says so. Raises InputError if there is no curve or the shapes do not fit.
    """
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    ends = draw_curves(axes, curves, steps)
    axes.set(title=title, xlabel="training step", ylabel=ylabel)
    return finish(figure, seeds_note(curves), {axes: ends})


@styled
def learning_dashboard(runs: Mapping[str, Curves], steps: Sequence[int], title: str = "") -> Figure:
    """Reward, entropy, KL of an update and the share of tokens without gradient: four panels, one colour per recipe.

    runs: recipe -> metric -> `[seeds, steps]` with the metrics of `PANELS`. Raises InputError if a
    recipe lacks one of them or the shapes do not fit.
    """
    figure = new_figure(9.6, 6.4)
    grid = figure.add_gridspec(4, 2)
    ends = {}
    for metric, ((rows, column), name, unit) in PANELS.items():
        axes = figure.add_subplot(grid[rows, column])
        ends[axes] = draw_curves(axes, _metric(runs, metric), steps)
        axes.set(title=name, ylabel=unit, xlabel="training step" if rows.stop == 4 else "")
        if "zero_grad" in metric:
            axes.set_ylim(bottom=0)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    note = "A token without gradient has advantage A ≠ 0 and gradient coefficient 0."
    return finish(figure, f"{seeds_note(_metric(runs, 'reward'))} {note}", ends)


@styled
def entropy_reward_phase(runs: Mapping[str, Curves], title: str = "What the reward was paid with") -> Figure:
    """Entropy against expected reward along training: a hollow dot where each recipe starts, a full one where it ends.

    runs: recipe -> metric -> `[seeds, steps]` with "reward" and "entropy". Raises InputError as the dashboard does.
    """
    reward, entropy = _metric(runs, "reward"), _metric(runs, "entropy")
    figure = new_figure(6.4, 4.6)
    axes = figure.subplots()
    ends = []
    for name in reversed(list(runs)):
        color = objective_color(name)
        axes.plot(entropy[name][:FEW_PATHS].T, reward[name][:FEW_PATHS].T, color=color, lw=0.6, alpha=0.2)
        x, y = (middle(curves[name]).estimate for curves in (entropy, reward))
        axes.plot(x, y, color=color, label=name)
        axes.plot(x[0], y[0], "o", color=color, mfc="white", ms=7, mew=1.5)
        axes.plot(x[-1], y[-1], "o", color=color, ms=7)
        ends.append(End(float(x[-1]), float(y[-1]), name, color))
    axes.set(title=title, xlabel="entropy (nats per token), spent from left to right", ylabel="expected reward")
    axes.xaxis.set_inverted(True)  # time then runs to the right, as in every other picture
    note = f"Thick: interquartile means over seeds at each step, from start (○) to end (●); thin: {FEW_PATHS} seeds."
    return finish(figure, f"{note} {_counts(reward)}.", {axes: ends})


def draw_curves(axes: Axes, curves: Curves, steps: Sequence[float]) -> list[End]:
    """Draw recipes on one panel and return where their lines end."""
    _check(curves, steps)
    every = max(1, len(steps) // MOST_POINTS)
    x = torch.tensor(steps, dtype=torch.float64)[::every]
    ends = []
    for name, values in reversed(list(curves.items())):  # the first recipe is the one in question: it goes on top
        color = objective_color(name)
        band = middle(values[:, ::every])
        if values.shape[0] < FEWEST_SEEDS:
            axes.plot(x, values[:, ::every].T, color=color, lw=0.9, alpha=0.8)
        else:
            axes.fill_between(x, band.low, band.high, color=color, alpha=0.2, lw=0)
            axes.plot(x, band.estimate, color=color, label=name)
        defined = (~band.estimate.isnan()).nonzero().flatten().tolist()
        if defined:
            last = defined[-1]
            ends.append(End(float(x[last]), float(band.estimate[last]), name, color))
    axes.margins(x=0.01)
    return ends


def seeds_note(curves: Curves) -> str:
    """What the lines and bands of `draw_curves` are, and over how many seeds."""
    few = [name for name, values in curves.items() if values.shape[0] < FEWEST_SEEDS]
    notes = []
    if len(few) < len(curves):
        notes.append(
            "Line: interquartile mean over seeds; band: its pointwise 95 % interval (percentile bootstrap over seeds)."
        )
    if few:
        notes.append(f"{', '.join(few)}: too few seeds for a band (at least {FEWEST_SEEDS}), each line is one seed.")
    gaps = any(bool(values.isnan().any()) for values in curves.values())
    notes.append(f"{_counts(curves)}{', fewer where a seed has no value' if gaps else ''}.")
    return " ".join(notes)


def _counts(curves: Curves) -> str:
    counts = {name: values.shape[0] for name, values in curves.items()}
    if len(set(counts.values())) == 1:
        return f"n = {next(iter(counts.values()))} seeds"
    return "n = " + ", ".join(f"{n} ({name})" for name, n in counts.items()) + " seeds"


def middle(values: Tensor) -> Band:
    """Interquartile mean and band per step over the seeds that have a value; NaN where fewer than 3 have one."""
    values = values.double()
    if values.shape[0] < FEWEST_SEEDS:
        return Band(values.mean(0), *values.new_full((2, values.shape[1]), math.nan))
    # NaN sorts last, so the defined values of each step come first.
    ordered, defined = values.sort(0).values.T, (~values.isnan()).sum(0)
    band = Band(*ordered.new_full((3, len(ordered)), math.nan))
    for n in defined.unique().tolist():
        if n >= FEWEST_SEEDS:
            found = iqm_band(ordered[defined == n, :n], Generator().manual_seed(0), samples=1000)
            for part, drawn in zip(band, found, strict=True):
                part[defined == n] = drawn
    return band


def _metric(runs: Mapping[str, Curves], metric: str) -> dict[str, Tensor]:
    """One metric of every recipe."""
    for name, metrics in runs.items():
        if metric not in metrics:
            raise InputError(f"run '{name}' has no metric '{metric}'; it has {', '.join(sorted(metrics))}")
    return {name: metrics[metric] for name, metrics in runs.items()}


def _check(curves: Curves, steps: Sequence[float]) -> None:
    if not curves:
        raise InputError("there is no curve to draw; give at least one recipe")
    for name, values in curves.items():
        if values.ndim != 2 or values.shape[0] == 0 or values.shape[1] != len(steps):
            raise InputError(
                f"curves of '{name}' have shape {tuple(values.shape)}; give [seeds, steps] with {len(steps)} steps"
            )
