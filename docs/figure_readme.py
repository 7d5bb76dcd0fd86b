"""Draw the README's figure: `python docs/figure_readme.py` writes docs/images/etr_vs_grpo.png (half a minute)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import etr
from etr.plots.curves import middle
from etr.plots.style import INK, objective_color, styled, text_color
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

PLACE = Path(__file__).parent / "images" / "etr_vs_grpo.png"
CONFIG = ToyConfig(iterations=40, seeds=64)
WIDER = 0.3  # a GRPO whose one knob is turned up: what ETR must be compared with besides its control
FONT, LINE, DPI = 15, 3.0, 110
COLORS = {"wider": "#767676", "ink": INK} | {name: objective_color(name) for name in ("etr", "grpo", "grpo_wide")}


def main() -> None:
    """Train, draw, write."""
    torch.set_num_threads(1)
    model = make_model("bandit-spread")
    recipes = {name: etr.load_recipe(name) for name in ("etr", "grpo", "grpo_wide")}
    recipes["wider"] = etr.load_recipe("grpo", {"eps_low": WIDER, "eps_high": WIDER})
    curves = {name: train(recipe, model, CONFIG).curves["reward"] for name, recipe in recipes.items()}
    PLACE.parent.mkdir(exist_ok=True)
    draw(curves).savefig(PLACE, dpi=DPI, pil_kwargs={"optimize": True})


@styled
def draw(curves: Mapping[str, Tensor]) -> Figure:
    """Left: who gets the room to move. Right: what came of it, and the difference from GRPO on the same seed."""
    figure = Figure(figsize=(12.4, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=[1, 1.1], wspace=0.05, hspace=0.06)
    region, reward = figure.add_subplot(grid[:, 0]), figure.add_subplot(grid[0, 1])
    difference = figure.add_subplot(grid[1, 1], sharex=reward)
    draw_region(region)
    draw_reward(reward, curves)
    draw_difference(difference, curves)
    for axes in (region, reward, difference):
        axes.tick_params(labelsize=FONT - 2)
        axes.xaxis.label.set_fontsize(FONT)
        axes.yaxis.label.set_fontsize(FONT)
    reward.tick_params(labelbottom=False)
    return figure


def draw_region(axes: Axes) -> None:
    """ETR's half-width for right and wrong answers against GRPO's."""
    p = torch.linspace(0.005, 0.995, 397, dtype=torch.float64)
    color = COLORS["etr"]
    axes.plot(p, torch.full_like(p, 0.2), color=COLORS["grpo"], lw=LINE)
    axes.plot(p, half_width(p, ((1 - p) / p).sqrt()), color=color, lw=LINE)
    axes.plot(p, half_width(p, -(p / (1 - p)).sqrt()), color=color, lw=LINE, ls=(0, (3, 1.4)))
    label(axes, 0.24, 0.304, "ETR, right answers", "etr", "center")
    label(axes, 0.79, 0.304, "ETR, wrong ones", "etr", "center")
    label(axes, 0.5, 0.193, "GRPO", "grpo", "center", "top")
    axes.set_title("How far may an answer move?", fontsize=FONT + 2)
    axes.set(xlim=(0, 1), ylim=(0, 0.34), yticks=[0, 0.1, 0.2, 0.3])
    axes.set(xlabel="success rate of the group", ylabel="half-width ε of the clip range")


def half_width(p: Tensor, advantage: Tensor) -> Tensor:
    """ε of ETR for answers with these advantages in groups with success rate p, read off the region it returns."""
    old = torch.full((len(p), 1), -2.0, dtype=p.dtype)
    group = etr.GroupStats(mean=p, var=p * (1 - p), size=torch.full_like(p, 16))
    batch = etr.Batch(old, old, torch.ones_like(old, dtype=torch.bool), advantage, group)
    return etr.policy_loss(etr.get("etr"), batch).region.high.squeeze(-1) - 1


def draw_reward(axes: Axes, curves: Mapping[str, Tensor]) -> None:
    """Learning curves: interquartile mean and 95 % band over seeds."""
    bands(axes, {name: values for name, values in curves.items() if name != "wider"})
    label(axes, 39.5, 0.66, "ETR, GRPO and control coincide", "ink", "right", "top")
    axes.set_title(f"Learning on a bandit, {CONFIG.seeds} seeds", fontsize=FONT + 2)
    axes.set(ylabel="expected\nreward", xlim=(0, CONFIG.iterations))


def draw_difference(axes: Axes, curves: Mapping[str, Tensor]) -> None:
    """The same as a difference from GRPO, seed by seed: on one scale the curves cannot be told apart."""
    bands(axes, {name: values - curves["grpo"] for name, values in curves.items()})
    label(axes, 10.6, 0.0125, f"GRPO with ε = {WIDER:g}", "wider", "left")
    label(axes, 8, 0.0022, "ETR", "etr", "center")
    label(axes, 10.6, -0.0015, "control: ETR's mean width for all", "grpo_wide", "left", "top")
    axes.set(xlabel="batches of answers", ylabel="gain over\nGRPO", ylim=(-0.006, 0.021), yticks=[0, 0.01, 0.02])


def bands(axes: Axes, curves: Mapping[str, Tensor]) -> None:
    """One line and band per recipe; the first recipe on top."""
    for name, values in reversed(list(curves.items())):
        band, x = middle(values), torch.arange(1, values.shape[1] + 1)
        axes.fill_between(x, band.low, band.high, color=COLORS[name], alpha=0.25, lw=0)
        axes.plot(x, band.estimate, color=COLORS[name], lw=LINE)


def label(axes: Axes, x: float, y: float, text: str, name: str, ha: str, va: str = "bottom") -> None:
    """Write in the colour of the objective, darkened until it can be read."""
    axes.text(x, y, text, color=text_color(COLORS[name]), fontsize=FONT, fontweight="bold", ha=ha, va=va)


if __name__ == "__main__":
    main()
