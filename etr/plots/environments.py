"""Each environment asks a question; these pictures answer it, exactly, from the policies that training ended with."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from etr import exact
from etr.errors import InputError
from etr.plots.answers import ANSWERS, table_of_sums
from etr.plots.curves import draw_curves, seeds_note
from etr.plots.panels import Answer, Histories, Panel, final
from etr.plots.style import QUIET, End, finish, new_figure, styled
from toy_envs import ExactEnv, make_env, resolve

MOST_COLUMNS = 3


@styled
def environment_answer(env_name: str, histories: Histories) -> Figure:
    """The picture that answers the `QUESTION` of an environment, for the recipes trained on it.

    histories: by recipe, all of runs on `env_name`. Probabilities and expected rewards are exact, from the final
    `history.logits`. Raises InputError for an unknown environment, no history, and logits of another shape.
    """
    try:
        family, env = resolve(env_name)[0], make_env(env_name)
    except ValueError as error:
        raise InputError(str(error)) from error
    if not histories:
        raise InputError(f"there is no history of '{env_name}' to draw; give at least one recipe")
    return _sums(env, histories) if family == "mod" else _lines(family, env, histories)


def _lines(family: str, env: ExactEnv[Any], histories: Histories) -> Figure:
    panels, note = ANSWERS.get(family, _by_prompt)(env, histories)
    figure = new_figure(7.2 if len(panels) == 1 else 10.6, 4.4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    _title(figure, env)
    ends = {axes: _draw(axes, panel) for axes, panel in zip(grid, panels, strict=True)}
    return finish(figure, f"{note} {seeds_note(panels[0].lines)}", ends)


def _by_prompt(env: ExactEnv[Any], histories: Histories) -> Answer:
    """Of an environment without a picture of its own, a plugin's: what each prompt earns, and what it could."""
    model = env.model
    lines = final(histories, lambda logits: exact.expected_reward(logits, model))
    labels = ("What was learnt, by prompt", "number of the prompt", "expected success")
    panel = Panel(labels, range(model.prompts), lines, ("optimum", model.success.amax(-1)))
    return [panel], "Exact, from the policies after training."


def _title(figure: Figure, env: ExactEnv[Any]) -> None:
    question = textwrap.fill(env.QUESTION, int(figure.get_figwidth() * 9))
    figure.suptitle(question, x=0.01, ha="left", fontweight="bold", fontsize=13)


def _draw(axes: Axes, panel: Panel) -> list[End]:
    title, xlabel, ylabel = panel.labels
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xscale=panel.scale)
    ends = draw_curves(axes, panel.lines, panel.x)
    if panel.reference is not None:
        name, values = panel.reference
        axes.plot(panel.x, values, color=QUIET, lw=1.2, ls=(0, (4, 3)), zorder=1)
        ends.append(End(panel.x[-1], float(values[-1]), name, QUIET))
    if panel.ticks:
        axes.set_xticks(panel.x, panel.ticks)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(x=0.05)
    return ends


def _sums(env: ExactEnv[Any], histories: Histories) -> Figure:
    """One map per recipe of the probability that a + b is right."""
    columns = min(MOST_COLUMNS, len(histories))
    rows = math.ceil(len(histories) / columns)
    figure = new_figure(2.2 + 2.8 * columns, 1.4 + 2.6 * rows)
    _title(figure, env)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, (name, history) in zip(grid, histories.items(), strict=False):
        table = table_of_sums(env, history)
        image = axes.imshow(table.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
        axes.set(title=f"{name}: {float(table.mean()):.3f}", xlabel="b", ylabel="a")
        axes.set(xticks=range(len(table)), yticks=range(len(table)))
        axes.grid(visible=False)
    for axes in grid[len(histories) :]:
        axes.remove()
    figure.colorbar(image, ax=list(grid[: len(histories)]), label="probability of the right sum", aspect=30)
    note = "Number and colour: mean over prompts and seeds, mean over seeds;"
    seeds = sorted({len(history.logits) for history in histories.values()})
    return finish(figure, f"{note} n = {' or '.join(map(str, seeds))} seeds.")
