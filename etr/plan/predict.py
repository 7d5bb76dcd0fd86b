"""Memory, seconds, balance and cost of a run on a cluster."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from etr.errors import InputError
from etr.plan.assumptions import Assumption, assumptions
from etr.plan.devices import Device, device_of
from etr.plan.job import Job
from etr.plan.memory import Memory, plan
from etr.plan.models import Shape, shape_of
from etr.plan.profile import Profile
from etr.plan.ranges import Range, at_once
from etr.plan.speed import Sheet, kept, load, sync_seconds, training_seconds

MOST_GPUS = 4096


@dataclass(frozen=True)
class Prediction:
    """A run on a cluster. seconds: of the phases of a step; idle: share of the GPU time of a step that nobody uses.

    All ranges run from where the run is fast to where it is slow.
    """

    job: Job
    shape: Shape
    device: Device
    memory: Memory
    seconds: dict[str, Range]
    assumed: dict[str, Assumption]

    @property
    def training(self) -> Range:
        """Seconds of scoring and updates."""
        return self.seconds["scoring"] + self.seconds["update"]

    @property
    def step(self) -> Range:
        """Seconds of a step: one phase after the other, or rollout beside training where they have their own GPUs."""
        rollout = self.seconds["rollout"]
        both = at_once(rollout, self.training) if self.job.engine_share else rollout + self.training
        return both + self.seconds["sync"]

    @property
    def idle(self) -> float:
        """Share of all GPUs' time in a step in which they wait for the others, at the middle of the ranges."""
        used = self.seconds["rollout"].mid * self.job.engine_gpus + self.training.mid * self.job.trainer_gpus
        busy = self.step.mid - self.seconds["sync"].mid
        total = busy * self.job.gpus
        return 0.0 if not self.job.engine_share else max(0.0, 1.0 - used / total)

    @property
    def hours(self) -> Range:
        """Of all steps."""
        return self.step.scaled(self.job.steps / 3600)

    @property
    def rates(self) -> dict[str, Range]:
        """Tokens a second of the whole cluster: completions sampled, and tokens trained on with their prompts."""
        sampled, read = self.job.sequences * self.job.response_tokens, self.job.sequences * self.job.trained_length
        return {
            "rollout": self.seconds["rollout"].map(lambda s: sampled / s),
            "update": self.seconds["update"].map(lambda s: self.job.updates * read / s),
            "step": self.step.map(lambda s: sampled / s),
        }

    def cost(self, price: float) -> Range:
        """Of all steps, at a price for a GPU and an hour."""
        return self.hours.scaled(price * self.job.gpus)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = dataclasses.asdict(self)
        derived = {"step": self.step, "hours": self.hours, **{f"{k} tokens/s": v for k, v in self.rates.items()}}
        values["derived"] = {name: dataclasses.asdict(value) for name, value in derived.items()} | {"idle": self.idle}
        values["memory"]["fits"] = self.memory.fits
        return values


def predict(job: Job, profile: Profile | None = None, device: Device | None = None) -> Prediction:
    """Predict a run. A profile replaces the assumptions on arithmetic and bandwidth by measured speeds of one device.

    device: instead of the one that the job names. Raises InputError for values out of range and unknown names; whether
    it fits is in `memory.fits`.
    """
    job.check()
    shape = shape_of(job.model)
    if profile is not None:  # what a profile does not measure it takes from the job's GPU
        device = dataclasses.replace(device or device_of(job.gpu), name=profile.device, memory=profile.memory)
    device = device or device_of(job.gpu)
    assumed = assumptions(device)
    memory = plan(job, shape, device)
    speeds = profile or Sheet(device, assumed)
    share = load(job, memory.tensor_parallel, max(1, memory.concurrent))
    rate = speeds.training().scaled(job.trainer_gpus)
    left = kept(job, device, assumed)
    rate = Range(rate.good * left.good, rate.mid * left.mid, rate.bad * left.bad)
    scoring, update = training_seconds(job, shape, rate)
    seconds = {
        "rollout": speeds.rollout(job, shape, share),
        "scoring": scoring,
        "update": update,
        "sync": sync_seconds(job, shape, assumed),
    }
    return Prediction(job, shape, device, memory, seconds, assumed)


def remedies(job: Job, shape: Shape, device: Device) -> Iterator[str]:
    """Single changes after which the job fits, as options of `etr plan`, the least intrusive first."""
    tries: list[tuple[str, dict[str, Any]]] = [
        ("--gradient-checkpointing", {"gradient_checkpointing": True}),
        ("--micro-batch-tokens 2048", {"micro_batch_tokens": min(2048, job.micro_batch_tokens)}),
        ("--offload", {"offload": True}),
        ("--dtype bfloat16", {"dtype": "bfloat16"}),
        ("--optimizer-state 8bit", {"optimizer_state": "8bit"}),
        ("--lora-rank 16", {"lora_rank": 16}),
    ]
    gpus = job.gpus
    while gpus < MOST_GPUS:
        gpus *= 2
        tries.append((f"--gpus {gpus}", {"gpus": gpus}))
    for option, changes in tries:
        changed = dataclasses.replace(job, **changes)
        if changed != job and plan(changed, shape, device).fits:
            yield option
            if "gpus" in changes:
                return


def require_fit(prediction: Prediction) -> None:
    """Raise InputError if the job does not fit, with what would make it fit."""
    if prediction.memory.fits:
        return
    found = list(remedies(prediction.job, prediction.shape, prediction.device))
    mend = f"it fits with {' or with '.join(found)}" if found else "no single option makes it fit; take a smaller model"
    raise InputError(
        f"{prediction.shape.name} does not fit on {prediction.job.gpus} {prediction.device.name}: "
        f"{prediction.memory.lacking}; {mend}"
    )


def best_split(job: Job, profile: Profile | None = None, device: Device | None = None) -> Prediction | None:
    """The share of GPUs for the engine at which a step is shortest, of those that fit; None if none does."""
    node = (device or device_of(job.gpu)).node
    unit = max(1, min(job.gpus // 8, node))
    shares = [gpus / job.gpus for gpus in range(unit, job.gpus, unit)]
    tried = [predict(dataclasses.replace(job, engine_share=share), profile, device) for share in shares]
    return min((found for found in tried if found.memory.fits), key=lambda found: found.step.mid, default=None)
