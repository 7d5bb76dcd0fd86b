"""Performance profiles: not one number per recipe but the whole distribution of its runs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from etr.errors import InputError
from etr.plots.style import End, finish, new_figure, objective_color, styled
from etr.stats import performance_profile

POINTS, MARGIN = 401, 0.01


@styled
def performance_profiles(scores: Mapping[str, Tensor], label: str = "score", title: str = "") -> Figure:
    """Share of runs that score above each threshold, with its 95 % band: a higher curve is better everywhere.

    scores: recipe -> `[environments, seeds]`. Where two curves cross, which recipe is better depends on what
    is asked for. Source: 2108.13264. Raises InputError for no recipes and for fewer than 3 seeds.
    """
    if not scores:
        raise InputError("there are no scores to draw; give at least one recipe")
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    every = torch.cat([values.flatten().double() for values in scores.values()])
    at = torch.linspace(float(every.min()) - MARGIN, float(every.max()) + MARGIN, POINTS, dtype=torch.float64)
    bands = {name: performance_profile(v, at, Generator().manual_seed(0), samples=1000) for name, v in scores.items()}
    shares = torch.stack([band.estimate for band in bands.values()])
    widest = int((shares.amax(0) - shares.amin(0)).argmax())  # names stand where curves are furthest apart
    ends = []
    for name, band in reversed(list(bands.items())):
        color = objective_color(name)
        axes.fill_between(at, band.low, band.high, color=color, alpha=0.2, lw=0, step="mid")
        axes.plot(at, band.estimate, color=color, label=name, drawstyle="steps-mid")
        ends.append(End(float(at[widest]), float(band.estimate[widest]), name, color))
    axes.set(title=title, xlabel=f"{label} τ", ylabel="share of runs above τ", ylim=(0, 1.02))
    axes.margins(x=0)
    runs = {values.numel() for values in scores.values()}
    count = f"n = {' or '.join(map(str, sorted(runs)))} runs (environments × seeds)."
    note = "Band: 95 % interval at each τ, bootstrap over seeds within each environment."
    return finish(figure, f"{note} {count}", {axes: ends})
