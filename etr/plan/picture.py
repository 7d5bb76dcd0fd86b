"""One picture of a plan: the seconds of a step and its cost, against the number of GPUs."""

from __future__ import annotations

import dataclasses

from matplotlib.figure import Figure

from etr.plan.devices import Device
from etr.plan.predict import Prediction, predict
from etr.plan.profile import Profile
from etr.plots.style import INK, OBJECTIVE_COLORS, QUIET, End, finish, new_figure, styled

COLOURS = dict(zip(("rollout", "scoring", "update", "sync"), list(OBJECTIVE_COLORS.values())[:4], strict=True))
FURTHER = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # GPUs shown, as multiples of those asked for


def around(prediction: Prediction, profile: Profile | None = None, device: Device | None = None) -> list[Prediction]:
    """The same job on fewer and on more GPUs."""
    job = prediction.job
    least = max(job.tensor_parallel, 2 if job.engine_share else 1)
    counts = sorted({round(factor * job.gpus) for factor in FURTHER if round(factor * job.gpus) >= least})
    return [predict(dataclasses.replace(job, gpus=gpus), profile, device) for gpus in counts]


@styled
def plan_figure(predictions: list[Prediction], price: float | None) -> Figure:
    """Seconds of each phase and of the step, and GPU hours (or their cost) of all steps, over the number of GPUs."""
    figure = new_figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    gpus = [found.job.gpus for found in predictions]
    ends = []
    for name, colour in COLOURS.items():
        values = [found.seconds[name].mid for found in predictions]
        if max(values) > 0:
            left.plot(gpus, values, color=colour)
            ends.append(End(gpus[-1], values[-1], name, colour))
    steps = [found.step for found in predictions]
    left.plot(gpus, [step.mid for step in steps], color=INK, linewidth=2.5)
    left.fill_between(gpus, [s.good for s in steps], [s.bad for s in steps], color=INK, alpha=0.08, linewidth=0)
    ends.append(End(gpus[-1], steps[-1].mid, "step", INK))
    total = [found.cost(1.0 if price is None else price) for found in predictions]
    right.plot(gpus, [cost.mid for cost in total], color=INK)
    right.fill_between(gpus, [c.good for c in total], [c.bad for c in total], color=INK, alpha=0.08, linewidth=0)
    tight = [
        (found.job.gpus, cost.mid) for found, cost in zip(predictions, total, strict=True) if not found.memory.fits
    ]
    if tight:
        right.plot(*zip(*tight, strict=True), "x", color=QUIET, label="does not fit")
        right.legend(frameon=False)
    left.set(title="Seconds of a step", xlabel="GPUs", xscale="log", yscale="log")
    right.set(title="GPU hours" if price is None else "Cost", xlabel="GPUs", xscale="log", ylim=(0, None))
    for axes in (left, right):
        axes.set_xticks(gpus, [str(count) for count in gpus])
        axes.minorticks_off()
    first = predictions[0]
    text = (
        f"{first.shape.name} on {first.device.name}: {first.job.sequences} completions of {first.job.response_tokens} "
        f"tokens a step, {first.job.steps} steps. Predicted, not measured; bands are the ranges of the assumptions."
    )
    return finish(figure, text, {left: ends})
