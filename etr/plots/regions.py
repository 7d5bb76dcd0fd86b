"""Trust regions: how wide, and for whom."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor

from etr.errors import InputError
from etr.plots.curves import middle, seeds_note
from etr.plots.style import INK, SMALL, End, finish, new_figure, objective_color, styled

WIDTH_MAP = "RdBu_r"  # blue: tighter than the fixed clip, red: wider, white: the same


@styled
def region_landscape(
    eps: Tensor,
    advantages: Tensor,
    success_rates: Tensor,
    fixed: float = 0.2,
    title: str = "Half-width of the ratio interval",
) -> Figure:
    """Heat map of a half-width ε over success rate and advantage, with the contour where it equals the fixed clip.

    eps: `[nA, nP]`; advantages: `[nA]`, of both signs or as |A|; success_rates: `[nP]` in (0, 1). The two dashed
    curves are the only places a group of 0/1 rewards with z-scored advantages can be: A = +√((1−p)/p) for right
    answers, −√(p/(1−p)) for wrong ones. Raises InputError if the shapes do not fit.
    """
    if eps.shape != (len(advantages), len(success_rates)):
        raise InputError(
            f"eps has shape {tuple(eps.shape)}, but there are {len(advantages)} advantages and "
            f"{len(success_rates)} success rates; give [advantages, success rates]"
        )
    figure = new_figure(6.4, 4.4)
    axes = figure.subplots()
    low, high = _limits(eps)
    grid = (success_rates.numpy(), advantages.numpy(), eps.numpy())
    reach = 1.25 * max(high - fixed, fixed - low, 1e-6)  # some room keeps the ends of the map from going dark
    norm = TwoSlopeNorm(fixed, fixed - reach, fixed + reach)
    mesh = axes.pcolormesh(*grid, cmap=WIDTH_MAP, norm=norm, shading="gouraud", rasterized=True)
    if low < fixed < high:
        lines = axes.contour(*grid, levels=[fixed], colors=INK, linewidths=1)
        axes.clabel(lines, fmt=f"ε = {fixed:g}", fontsize=SMALL)
    signed = _limits(advantages)[0] < -0.01 * _limits(advantages)[1]
    axes.set(title=title, xlabel="success rate of the group, p", ylabel="advantage A" if signed else "|A|")
    axes.set(xlim=_limits(success_rates), ylim=_limits(advantages))
    _reachable(axes, signed)
    axes.grid(visible=False)
    bar = figure.colorbar(mesh, ax=axes, aspect=28, ticks=sorted({low, fixed, high}), format="%.2f")
    bar.ax.set_ylim(min(low, fixed), max(high, fixed + 1e-6))
    bar.ax.axhline(fixed, color=INK, lw=1)
    note = f"Colour: half-width ε; white equals the fixed clip {fixed:g}, red is wider, blue tighter. Dashed: where the"
    return finish(figure, f"{note} answers of a group with 0/1 rewards and z-scored advantages lie.")


@styled
def width_by_success_rate(widths: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Mean width of the ratio interval by the success rate of the group: who gets the room to move.

    widths: recipe -> (edges `[bins + 1]`, width `[seeds, bins]`, NaN for a bin without groups). Raises InputError if
    there is nothing to draw or the shapes do not fit.
    """
    if not widths:
        raise InputError("there is no width to draw; give at least one recipe")
    figure = new_figure(6.4, 3.8)
    axes = figure.subplots()
    ends = []
    for name, (edges, width) in reversed(list(widths.items())):
        if width.ndim != 2 or len(edges) != width.shape[1] + 1:
            raise InputError(
                f"width of '{name}' has shape {tuple(width.shape)} for {len(edges)} edges; give [seeds, edges - 1]"
            )
        color, band = objective_color(name), middle(width)
        low, high = (torch.cat([end, end[-1:]]) for end in band[1:])  # a filled staircase wants one value per edge
        axes.fill_between(edges, low, high, step="post", color=color, alpha=0.2, lw=0)
        axes.stairs(band.estimate, edges, baseline=None, color=color, lw=2, label=name)
        filled = (~band.estimate.isnan()).nonzero().flatten().tolist()
        ends += [End(float(edges[b + 1]), float(band.estimate[b]), name, color) for b in filled[-1:]]
    axes.set(title="Width of the trust region by difficulty", ylim=(0, 1.08 * axes.get_ylim()[1]), xlim=(0, 1))
    axes.set(xlabel="success rate of the group", ylabel="upper − lower bound of the ratio")
    return finish(figure, seeds_note({name: width for name, (_, width) in widths.items()}), {axes: ends})


def _reachable(axes: Axes, signed: bool) -> None:
    """Curves of the advantages that groups of 0/1 rewards can have, named where they are steep."""
    p = torch.linspace(*axes.get_xlim(), 400, dtype=torch.float64)
    sign = -1 if signed else 1
    halo = [withStroke(linewidth=3, foreground="white", alpha=0.8)]
    height = 0.62 * axes.get_ylim()[1]
    at = 1 / (1 + height**2)  # where √((1−p)/p) has that height; the other curve is its mirror image
    for y, x, name, side in (
        (((1 - p) / p).sqrt(), at, "right answers", 1),
        (sign * (p / (1 - p)).sqrt(), 1 - at, "wrong answers", -1),
    ):
        axes.plot(p, y, color=INK, lw=1.4, ls=(0, (4, 2)))
        axes.annotate(
            name,
            (x, height if side == 1 else sign * height),
            xytext=(8 * side, 0),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            path_effects=halo,
        )


def _limits(values: Tensor) -> tuple[float, float]:
    return float(values.min()), float(values.max())
