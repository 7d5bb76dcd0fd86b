"""`etr plan`: what a run on a cluster needs and costs, before it is started."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from tyro.conf import OmitArgPrefixes

from etr.cli.options import console, print_table
from etr.plan.job import Job
from etr.plan.predict import Prediction
from etr.plan.ranges import Range

GIB = 2**30


def plan(
    job: OmitArgPrefixes[Job] = Job(),  # noqa: B008  (tyro reads the fields; frozen)
    profile: Path | None = None,
    price_per_gpu_hour: float | None = None,
    json: Path | None = None,
    png: Path | None = None,
) -> None:
    """Predict memory, tokens/s, balance and cost of a run on a cluster, with every assumption.

    Ranges run from where a run is fast to where it is slow; docs/scaling.md says how far off published runs they were.
    Example: etr plan --model 7b --gpus 64 --response-tokens 2048 --longest-tokens 8192 --price-per-gpu-hour 2

    Args:
        job: What would be trained on what.
        profile: Measured step of one device (etr doctor --measure --json FILE); replaces assumptions by its speeds.
        price_per_gpu_hour: In any currency, for the cost.
        json: File to write everything to.
        png: File for a picture: seconds of a step and cost against the number of GPUs.
    """
    from etr.environment import environment
    from etr.errors import InputError
    from etr.files import atomic_write, to_json
    from etr.plan.predict import best_split, predict, require_fit
    from etr.plan.profile import read_profile

    if price_per_gpu_hour is not None and not price_per_gpu_hour > 0:
        raise InputError(f"price_per_gpu_hour is {price_per_gpu_hour}; give a positive number, or leave it out")
    measured = read_profile(profile) if profile else None
    console.print("etr: imagining two models with few layers for the memory plan ...", markup=False)
    found = predict(job, measured)
    require_fit(found)
    best = best_split(job, measured) if job.gpus > 1 else None
    _print_memory(found)
    _print_speed(found, price_per_gpu_hour)
    _print_balance(found, best)
    _print_assumptions(found, measured is not None)
    if json is not None:
        atomic_write(json, to_json({**found.as_dict(), "environment": environment()}, indent=1) + "\n")
    if png is not None:
        from etr.plan.picture import around, plan_figure
        from etr.plots import png as drawn

        atomic_write(png, drawn(plan_figure(around(found, measured), price_per_gpu_hour)))
        console.print(f"Wrote {escape(str(png))}.")


def _print_memory(found: Prediction) -> None:
    memory = found.memory
    rows = [[part, f"{size / GIB:.1f}"] for part, size in memory.parts.items()]
    rows += [
        ["peak of the update", f"{memory.update / GIB:.1f}"],
        ["peak of the rollout", f"{memory.rollout / GIB:.1f}"],
    ]
    caption = (
        f"{memory.usable / GIB:.0f} GiB may be filled; one copy of the engine on {memory.tensor_parallel} GPU(s) has "
        f"room for {memory.concurrent} sequences"
    )
    print_table(f"{found.shape.name}: memory of each GPU, GiB", ["part", "predicted"], rows, caption)


def _print_speed(found: Prediction, price: float | None) -> None:
    rows = [[name, *_cells(seconds, ".1f")] for name, seconds in found.seconds.items()]
    rows.append(["step", *_cells(found.step, ".1f")])
    rows += [[f"{name}, tokens/s of the cluster", *_cells(rate, ",.0f")] for name, rate in found.rates.items()]
    rows.append([f"hours for {found.job.steps} steps", *_cells(found.hours, ",.1f")])
    if price is not None:
        rows.append([f"cost at {price:g} a GPU hour", *_cells(found.cost(price), ",.0f")])
    where = f"{found.job.gpus} {found.device.name}"
    print_table(f"Seconds of a step on {where}", ["phase", "fast", "middle", "slow"], rows)


def _print_balance(found: Prediction, best: Prediction | None) -> None:
    if found.job.engine_share:
        console.print(
            f"{found.job.engine_gpus} GPUs sample while {found.job.trainer_gpus} train; {found.idle:.0%} of their time "
            "is idle.",
            soft_wrap=True,
        )
    else:
        share = found.seconds["rollout"].mid / found.step.mid
        console.print(f"All GPUs do both in turn; {share:.0%} of a step is rollout.", soft_wrap=True)
    if best is not None:
        console.print(
            f"Best split with separate GPUs, one step off policy: {best.job.engine_gpus} sample and "
            f"{best.job.trainer_gpus} train, {best.step.mid:.1f} s a step, {best.idle:.0%} idle "
            f"(--engine-share {best.job.engine_share:g}).",
            soft_wrap=True,
        )


def _print_assumptions(found: Prediction, measured: bool) -> None:
    rows = [
        [name, *_cells(assumed.value, ".3g"), assumed.unit, assumed.source] for name, assumed in found.assumed.items()
    ]
    caption = "the profile's measured speeds stand for arithmetic and bandwidth" if measured else ""
    print_table("Assumptions", ["what", "fast", "middle", "slow", "unit", "source"], rows, caption)


def _cells(value: Range, form: str) -> list[str]:
    return [format(number, form) for number in (value.good, value.mid, value.bad)]


COMMANDS = {"plan": plan}
