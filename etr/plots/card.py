"""The picture of one objective: where its region lies, where its gradient dies, and how it learns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from etr.objective import Objective
from etr.plots.style import QUIET, End, finish, new_figure, objective_color, styled
from etr.probe import SIZE, probe

RATIOS = torch.linspace(0.4, 1.8, 141, dtype=torch.float64)
CEILING = 3.0  # of the ratio axis: an upper bound beyond it is as good as none
SIGNS = {True: ("right", "solid"), False: ("wrong", (0, (2.5, 1.5)))}


class Learning(NamedTuple):
    """A training: n `steps`, and at each the reward and the share of the greatest entropy, `[seeds, n]`."""

    steps: Sequence[int]
    reward: Tensor
    entropy: Tensor


@styled
def objective_card(objective: Objective, learning: Learning | None = None, caption: str = "") -> Figure:
    """Bounds on the ratio over the group's success rate, gradient coefficient over the ratio, and how it learns.

    The answers looked at are one right and one wrong one of a group of eight (`etr.probe`). Without `learning` there
    are two panels.
    """
    figure = new_figure(3.2 * (2 + (learning is not None)), 3.4)
    bounds, gradient, *more = figure.subplots(1, 2 + (learning is not None))
    color = objective_color(objective.name)
    ends = {bounds: _bounds(bounds, objective, color), gradient: _gradient(gradient, objective, color)}
    if learning is not None:
        ends[more[0]] = _learning(more[0], learning, color)
    note = f"{objective.name}: answers of a group of {SIZE}; solid: a right one, dashed: a wrong one. {caption}"
    return finish(figure, note, ends)


def _bounds(axes: Axes, objective: Objective, color: str) -> list[End]:
    one, ends, highest = torch.ones(1, dtype=torch.float64), [], 1.6
    correct = range(1, SIZE)
    rates = [k / SIZE for k in correct]
    for right, (label, dashes) in SIGNS.items():
        found = [probe(objective, one, right, k) for k in correct]
        low, high = ([min(float(getattr(point, bound)), CEILING) for point in found] for bound in ("low", "high"))
        axes.plot(rates, low, color=color, ls=dashes)
        axes.plot(rates, high, color=color, ls=dashes)
        highest = max(highest, *high)
        if high[-1] < CEILING:
            ends.append(End(rates[-1], high[-1], label, color))
    if highest == CEILING:
        axes.text(0.5, 0.9, "no upper bound", color=QUIET, ha="center", transform=axes.transAxes)
    axes.axhline(1, color=QUIET, lw=0.8)
    axes.set(title="region", xlabel="success rate of the group, p", ylabel="bounds on the ratio r")
    axes.set_ylim(0, 1.02 * highest)
    return ends


def _gradient(axes: Axes, objective: Objective, color: str) -> list[End]:
    ends = []
    for right, (label, dashes) in SIGNS.items():
        values = probe(objective, RATIOS, right).coefficient
        axes.plot(RATIOS, values, color=color, ls=dashes)
        ends.append(End(float(RATIOS[-1]), float(values[-1]), label, color))
    axes.axvline(1, color=QUIET, lw=0.8)
    axes.axhline(0, color=QUIET, lw=0.8)
    axes.set(title="gradient coefficient", xlabel="ratio r", ylabel="c at p = ½")
    axes.margins(x=0)
    return ends


def _learning(axes: Axes, learning: Learning, color: str) -> list[End]:
    ends, steps = [], learning.steps
    for label, dashes in (("reward", "solid"), ("entropy", (0, (1, 1)))):
        values = getattr(learning, label).double()
        low, mid, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
        axes.fill_between(steps, low, high, color=color, alpha=0.2, lw=0)
        axes.plot(steps, mid, color=color, ls=dashes)
        ends.append(End(float(steps[-1]), float(mid[-1]), label, color))
    axes.set(title="a bandit", xlabel="rollout batches", ylabel="reward; share of full entropy", ylim=(0, 1.02))
    return ends
