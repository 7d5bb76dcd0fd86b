"""The curves of one run, with a mark where each alarm of the observatory rings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from etr.errors import InputError
from etr.observatory import Alarm
from etr.observatory.alarms import window
from etr.plots.llm import moving_mean
from etr.plots.style import SMALL, finish, new_figure, styled

ALARMED = {"entropy": "entropy (nats per token)", "reward": "reward"}  # metric -> name of its axis
CURVE, MARK = "#0072B2", "#D55E00"


@styled
def alarm_curves(
    steps: Sequence[int], curves: Mapping[str, Sequence[float]], alarms: Sequence[Alarm], title: str = ""
) -> Figure:
    """Curves of one run, one panel each, with a numbered line where each alarm rings; the caption has the sentences.

    curves: name of the axis -> values; thin as logged, thick the moving mean. Raises InputError without a curve.
    """
    if not curves or not steps:
        raise InputError("there is no curve to draw; give entropy or reward of at least one step")
    figure = new_figure(7.2, 1.2 + 2.2 * len(curves))
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, curves.items(), strict=True):
        axes.plot(steps, values, color=CURVE, lw=0.8, alpha=0.4)
        axes.plot(steps, moving_mean(values, window(len(steps))), color=CURVE, label=name)
        axes.set(ylabel=name)
        axes.margins(x=0.01)
        for alarm in alarms:
            axes.axvline(alarm.step, color=MARK, lw=1, ls=(0, (4, 2)))
    for number, alarm in enumerate(alarms, 1):
        place = (alarm.step, 1.02)
        mark = {"xycoords": panels[0].get_xaxis_transform(), "ha": "center", "fontsize": SMALL, "color": MARK}
        panels[0].annotate(str(number), place, **mark)
    panels[-1].set_xlabel("training step")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    said = [f"({i}) {alarm.kind} at step {alarm.step}: {alarm.sentence}." for i, alarm in enumerate(alarms, 1)]
    return finish(figure, " ".join(said) or "No alarm.")
