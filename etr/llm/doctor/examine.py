"""Everything that can be known about a run before it is started, in one object."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etr.llm.config import TrainConfig
from etr.llm.doctor import machine, versions
from etr.llm.doctor.clipping import clipping
from etr.llm.doctor.findings import Finding
from etr.llm.doctor.measure import Measured, measure, noise_findings
from etr.llm.doctor.memory import MemoryPlan, plan_memory
from etr.llm.doctor.outline import outline
from etr.llm.doctor.work import Work, work_of
from etr.llm.setup import pick_device
from etr.recipe import Recipe

Say = Callable[[str], None]
TIGHT = 0.9  # share of the memory beyond which a plan has no room for what it does not see


@dataclass(frozen=True)
class Examination:
    """The doctor's report. measured, and the plan of that very step, are None unless asked for."""

    versions: dict[str, str]
    machine: dict[str, Any]
    device: str
    work: Work
    plan: MemoryPlan
    findings: tuple[Finding, ...]
    measured: Measured | None = None
    measured_plan: MemoryPlan | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        values["plan"]["peak"] = self.plan.peak
        if self.measured is not None:
            values["measured"]["throughput"] = self.measured.throughput
        return values


def examine(recipe: Recipe, config: TrainConfig, measuring: bool = False, say: Say = lambda text: None) -> Examination:
    """Examine a run without starting it; `measuring` runs two steps at lr = 0. Raises InputError as `etr train` would.

    say: hears what takes time.
    """
    config.check()
    device = pick_device(config.device)
    on_gpu = device.type == "cuda"
    facts, found = machine.machine(), versions.installed()
    gpu_here = facts["gpu"] is not None or facts["nvidia"]
    findings = versions.conflicts(found, versions.requirements(found), gpu_here)
    findings += machine.findings(facts, config.dtype, on_gpu, os.environ)
    say("planning memory from the model's config ...")
    shape = outline(config.model)
    work = work_of(shape, recipe, config)
    plan = plan_memory(shape, recipe, config, work)
    findings += [*memory_findings(plan, facts, on_gpu), *clipping(recipe)]
    measured, again = measure(recipe, config, say) if measuring else None, None
    if measured is not None:
        again = plan_memory(shape, recipe, config, measured.work)
        findings += noise_findings(measured.noise, recipe.correction.active)
    return Examination(found, facts, str(device), work, plan, tuple(findings), measured, again)


def memory_findings(plan: MemoryPlan, facts: dict[str, Any], on_gpu: bool) -> list[Finding]:
    """Whether the plan fits."""
    has = facts["gpu"]["memory"] if on_gpu else facts["memory"]
    if has is None or plan.peak <= TIGHT * has:
        return []
    phase = max(plan.phases, key=lambda name: plan.phases[name])
    level = "problem" if plan.peak > has else "warning"
    text = f"the plan needs {plan.peak / 2**30:.1f} GiB at its peak ({phase}) of {has / 2**30:.1f} GiB"
    mend = (
        "fewer prompts a step or a smaller model"
        if phase == "rollout"
        else "--micro-batch-tokens smaller, --gradient-checkpointing, --dtype bfloat16, --optimizer-state 8bit, "
        "--lora-rank 16 or a smaller model"
    )
    return [Finding(level, text, mend)]
