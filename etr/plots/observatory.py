"""What an update did: where entropy went, whether the covariance law foresaw it, and who left the trust region."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from etr.errors import InputError
from etr.observatory import PROBABILITY_EDGES, SUCCESS_EDGES
from etr.observatory.entropy import bin_names
from etr.plots.curves import middle, seeds_note
from etr.plots.style import INK, QUIET, End, finish, new_figure, objective_color, styled

# Cells of an update, their names and colours.
VISITS = {"entropy/visits": ("other states visited", "#CC79A7")}
BY_SIGN = {
    "entropy/change_pos": ("praised, A > 0", "#009E73"),
    "entropy/change_neg": ("punished, A < 0", "#D55E00"),
    "entropy/change_zero": ("sampled, A = 0", "#999999"),
    "entropy/change_unsampled": ("not sampled", "#56B4E9"),
    **VISITS,
}
EXACT = ("entropy/change_unsampled", "entropy/visits")  # only an exact split has them
SHADES = ("#08306B", "#2171B5", "#6BAED6", "#F4A582", "#B2182B")  # rare tokens blue, frequent ones red
BY_PROBABILITY = {
    f"entropy/change_{name}": (f"π_old {name[1:].replace('-', ' to ')}", shade)
    for name, shade in zip(bin_names(PROBABILITY_EDGES), SHADES, strict=True)
} | VISITS
MOST_BARS = 50  # more steps than that are added up in groups
MOST_DOTS = 4000
Parts = Mapping[str, tuple[str, str]]


@styled
def entropy_budget(
    curves: Mapping[str, Tensor], steps: Sequence[int], parts: Parts = BY_SIGN, title: str = "Where the entropy went"
) -> Figure:
    """Entropy change by part: stacked bars of single updates (rises above zero, falls below), and added up over steps.

    curves: metric -> `[seeds, steps]`, means over seeds are drawn; parts: metric -> (name, colour), those that are
    missing or 0 throughout are left out. Where parts are of samples only, entropy itself is drawn beside their sum.
    Raises InputError if there is no part.
    """
    drawn = {key: curves[key].double().nan_to_num().mean(0) for key in parts if key in curves}
    drawn = {key: values for key, values in drawn.items() if bool(values.any())}
    if not drawn:
        raise InputError(f"there is no part to draw; the curves have none of {', '.join(parts)} (train with observe)")
    figure = new_figure(9.6, 4.2)
    left, right = figure.subplots(1, 2)
    every = -(-len(steps) // MOST_BARS)
    _bars(left, {parts[key][1]: values for key, values in drawn.items()}, steps, every)
    ends = []
    for key, values in drawn.items():
        name, color = parts[key]
        total = values.cumsum(0)
        right.plot(steps, total, color=color, label=name)
        ends.append(End(steps[-1], float(total[-1]), name, color))
    whole = torch.stack(list(drawn.values())).sum(0).cumsum(0)
    right.plot(steps, whole, color=INK, lw=1.4, ls=(0, (4, 2)), label="all")
    ends.append(End(steps[-1], float(whole[-1]), "all", INK))
    note = ""
    if "entropy" in curves and not any(bool(curves[key].nan_to_num().any()) for key in EXACT if key in curves):
        entropy = curves["entropy"].double().mean(0)
        right.plot(steps, entropy - entropy[0], color=QUIET, lw=1.4, ls=(0, (1, 2)), label="entropy")
        ends.append(End(steps[-1], float(entropy[-1] - entropy[0]), "entropy itself", QUIET))
        note = "The parts are of the update's own samples, which overstate it: compare with entropy itself. "
    left.set(title=title, xlabel="training step", ylabel="nats per token")
    right.set(title="Added up over steps", xlabel="training step", ylabel="nats per token")
    right.margins(x=0.01)
    n = next(iter(curves.values())).shape[0]
    note += (
        f"Mean over n = {n} seeds." if n > 1 else "One run, or one summary over seeds (whose parts need not add up)."
    )
    updates = f"{every} measured updates together" if every > 1 else "one measured update"
    return finish(figure, f"A bar is {updates}; dashed: all parts together. {note}", {right: ends})


@styled
def prediction_scatter(predicted: Tensor, measured: Tensor, title: str = "Covariance law against entropy") -> Figure:
    """Measured entropy change of every update over the covariance law's prediction, `[seeds, steps]` each.

    Both on a scale that is linear near zero and logarithmic beyond. Raises InputError for unequal shapes.
    """
    if predicted.shape != measured.shape or predicted.ndim != 2 or predicted.numel() == 0:
        raise InputError(
            f"predicted has shape {tuple(predicted.shape)}, measured {tuple(measured.shape)}; give [seeds, steps] twice"
        )
    steps = torch.linspace(0, 1, predicted.shape[1]).expand(predicted.shape).flatten()
    x, y = predicted.flatten(), measured.flatten()
    every = -(-len(x) // MOST_DOTS)
    figure = new_figure(5.6, 4.8)
    axes = figure.subplots()
    dots = axes.scatter(x[::every], y[::every], c=steps[::every], cmap="viridis", s=9, alpha=0.7, lw=0)
    both = torch.cat([x, y]).nan_to_num()
    ends = [float(both.min()), float(both.max())]
    axes.plot(ends, ends, color=QUIET, lw=1)
    _symmetric_log(axes, both)
    bar = figure.colorbar(dots, ax=axes, ticks=[0, 1], pad=0.02)
    bar.ax.set_yticklabels(["first step", "last"])
    bar.outline.set_visible(False)
    axes.set(title=title, xlabel="predicted: −Cov(log π_old, r), nats per token", ylabel="measured, nats per token")
    shown = f"{len(x[::every])} updates" if every == 1 else f"every {every}th of {len(x)} updates"
    return finish(figure, f"{shown}. The distance below the line is KL(π ‖ π_old): larger steps lose more entropy.")


@styled
def width_and_occupancy(runs: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """Mean width of the region, and share of ratios that end outside it, over the success rate of the group.

    runs: recipe -> curves with `region/width/…` and `region/outside/…`, `[seeds, steps]`; the mean over steps is drawn,
    with a band over seeds. Raises InputError if there is nothing to draw.
    """
    if not runs:
        raise InputError("there is no run to draw; give at least one recipe")
    figure = new_figure(9.6, 3.8)
    panels = figure.subplots(1, 2)
    ends: dict[Axes, list[End]] = {axes: [] for axes in panels}
    shown: dict[str, Tensor] = {}
    edges = torch.tensor([0.0, *SUCCESS_EDGES, 1.0])
    for name, curves in reversed(list(runs.items())):
        for axes, metric in zip(panels, ("region/width", "region/outside"), strict=True):
            shown[name] = _by_success_rate(curves, metric, name)
            band, color = middle(shown[name]), objective_color(name)
            low, high = (torch.cat([end, end[-1:]]) for end in band[1:])  # a filled staircase wants a value per edge
            axes.fill_between(edges, low, high, step="post", color=color, alpha=0.2, lw=0)
            axes.stairs(band.estimate, edges, baseline=None, color=color, lw=2, label=name)
            filled = (~band.estimate.isnan()).nonzero().flatten().tolist()
            ends[axes] += [End(float(edges[b + 1]), float(band.estimate[b]), name, color) for b in filled[-1:]]
    for axes, title, unit in zip(
        panels, ("Width of the trust region", "Outside it after the update"), ("high − low", "share"), strict=True
    ):
        axes.set(title=title, xlabel="success rate of the group", ylabel=unit, xlim=(0, 1))
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    return finish(figure, f"Tokens with A ≠ 0, mean over steps. {seeds_note(shown)}", ends)


def _bars(axes: Axes, parts: Mapping[str, Tensor], steps: Sequence[int], every: int) -> None:
    """Stacked bars, falls downwards and rises upwards; parts: colour -> values by step."""
    wide = min((b - a for a, b in zip(steps, steps[every:], strict=False)), default=1)
    x = [fmean(steps[i : i + every]) for i in range(0, len(steps), every)]
    floor = torch.zeros(2, len(x), dtype=torch.float64)  # of the next rise and of the next fall
    for color, values in parts.items():
        height = torch.stack([group.sum() for group in values.split(every)])
        side = (height < 0).long()
        axes.bar(x, height, bottom=floor.gather(0, side[None])[0], width=0.85 * wide, color=color)
        floor.scatter_add_(0, side[None], height[None])
    axes.axhline(0, color=INK, lw=0.8)
    axes.margins(x=0.01)


def _by_success_rate(curves: Mapping[str, Tensor], metric: str, run: str) -> Tensor:
    """Means over steps, `[seeds, bins]`; NaN for a bin that no group fell into, which a log leaves out."""
    keys = [f"{metric}/{bin_}" for bin_ in bin_names(SUCCESS_EDGES)]
    found = [key for key in keys if key in curves]
    if not found:
        raise InputError(f"run '{run}' has no metric '{keys[0]}'; train with observe")
    nothing = torch.full_like(curves[found[0]], math.nan)
    return torch.stack([curves.get(key, nothing).double().nanmean(-1) for key in keys], -1)


def _symmetric_log(axes: Axes, values: Tensor) -> None:
    """Both axes linear up to the power of ten above the median size, logarithmic beyond, with ticks that keep apart."""
    sizes = values.abs()[values != 0]
    first = math.ceil(math.log10(float(sizes.median()))) if len(sizes) else 0
    powers = range(first, max(first, math.ceil(math.log10(float(sizes.max())))) + 1) if len(sizes) else [first]
    low, high = float(values.min()), float(values.max())
    ticks = [0.0, *(sign * 10.0**power for power in powers for sign in (1, -1))]
    for scale, place in ((axes.set_xscale, axes.xaxis), (axes.set_yscale, axes.yaxis)):
        scale("symlog", linthresh=10.0**first)
        place.set_ticks([tick for tick in ticks if low <= tick <= high])
        place.set_minor_locator(NullLocator())
