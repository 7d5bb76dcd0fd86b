"""`etr doctor`: examine a run before it is started."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from tyro.conf import OmitArgPrefixes, arg

from etr.cli.options import console, print_table, recipe_with
from etr.llm.config import TrainConfig

Set = Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE ...")]
COLOURS = {"problem": "red", "warning": "yellow", "note": "dim"}
GIB = 2**30
SMALL = 100 * 2**20  # bytes; what libraries keep for themselves is of that order


def doctor(
    recipe: str = "etr",
    set_: Set = (),
    config: OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    measure: bool = False,
    json: Path | None = None,
) -> None:
    """Examine a run before it is started: versions and their conflicts, machine, memory plan, what clipping can do.

    Takes the options of `etr train`. Example: etr doctor --model smollm2-135m --dtype bfloat16 --measure

    Args:
        recipe: An objective's name, a .yaml file or module:Class.
        set_: Fields of the recipe to change, for example optimizer.updates=2.
        config: What would be trained on what.
        measure: Also run two steps with learning rate 0: memory against the plan, throughput, noise floor.
        json: File to write everything to.
    """
    from etr.environment import environment
    from etr.files import atomic_write, to_json
    from etr.llm.doctor import examine

    found = examine(recipe_with(recipe, set_), config, measure, say)
    if json is not None:
        atomic_write(json, to_json({**found.as_dict(), "environment": environment()}, indent=1))
    _print_machine(found)
    _print_memory(found)
    if found.measured is not None:
        _print_measured(found.measured)
    for finding in found.findings:
        text = f"{finding.what}." + (f" Mend: {finding.mend}" if finding.mend else "")
        console.print(f"[{COLOURS[finding.level]}]{finding.level}[/] {escape(text)}", soft_wrap=True)


def say(message: str) -> None:
    """A plain line of progress."""
    console.print(f"etr: {message}", markup=False, soft_wrap=True)


def _print_machine(found: Any) -> None:
    facts = found.machine
    gpu = facts["gpu"]
    card = "none" if gpu is None else f"{gpu['name']}, {gpu['memory'] / GIB:.1f} GiB, {gpu['free'] / GIB:.1f} free"
    rows = [
        ["device", found.device],
        ["processor", f"{facts['processor']}, {facts['cores']} cores, {facts['threads']} torch threads"],
        ["bfloat16 on it", ", ".join(facts["bf16"]) or "emulated"],
        ["memory", "unknown" if facts["memory"] is None else f"{facts['memory'] / GIB:.1f} GiB"],
        ["GPU", card],
        ["free disk here", f"{facts['disk_free'] / GIB:.0f} GiB"],
        ["versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())],
    ]
    print_table("Machine", ["what", "found"], [[name, escape(value)] for name, value in rows])


def _print_memory(found: Any) -> None:
    plan = found.plan
    rows = [[part, _mib(size)] for part, size in plan.parts.items()]
    rows += [[f"peak of {phase}", _mib(size)] for phase, size in plan.phases.items()]
    caption = _shape(found.work) + ", all answers as long as they may be"
    if plan.host:
        caption += f"; the optimizer keeps {_mib(plan.host)} MiB in main memory"
    print_table("Memory plan, MiB", ["part", "predicted"], rows, caption)
    if found.measured is None:
        return
    rows = [
        [phase, _mib(size), _mib(seen := found.measured.peaks[phase]), f"{seen / size:.2f}"]
        for phase, size in found.measured_plan.phases.items()
    ]
    header = ["peak of", "predicted", "measured", "measured / predicted"]
    caption = _shape(found.measured.work)
    if max(found.measured_plan.phases.values()) < SMALL:
        caption += "; below 100 MiB the ratio says little: what libraries keep for themselves is of that order"
    print_table("The measured step, MiB", header, rows, caption)


def _shape(work: Any) -> str:
    passes = "1 forward pass" if work.passes == 1 else f"{work.passes} forward passes"
    return (
        f"{work.completions} completions of at most {work.prompt} + {work.answer} tokens; {passes} "
        f"an update, at most {work.rows} x {work.width} tokens ({work.packing})"
    )


def _print_measured(measured: Any) -> None:
    rows = [[name, f"{value:,.0f}", f"{measured.seconds.get(name, sum(measured.seconds.values())):.2f}"]
            for name, value in measured.throughput.items()]  # fmt: skip
    caption = f"rollout engine: {measured.engine}; update: answer tokens through forward and backward"
    print_table("Throughput", ["phase", "tokens/s", "seconds"], rows, caption)
    noise = measured.noise
    rows = [
        [what, *(f"{noise[f'{name}/{value}']:.2g}" for value in ("mean", "max")), f"{noise[f'{name}/outside']:.2%}"]
        for name, what in (("update", "trainer, after the updates"), ("rollout", "rollout engine"))
    ]
    caption = "at learning rate 0, against the trainer's log-probs before the updates: all of it is rounding"
    print_table("Noise floor", ["log-probs of", "mean |difference|", "max", "outside the region"], rows, caption)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


COMMANDS = {"doctor": doctor}
