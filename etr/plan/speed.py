"""Seconds of the phases of a step, from operations and bytes, and what a device does of them in a second.

update  = tokens · (3 or 4 with recomputation) · forward operations · updates / (GPUs · operations a second)
rollout = max(steps · weights / bandwidth, tokens · forward / operations) + cache read / bandwidth + steps · overhead
steps   = longest completion + (sequences / concurrent − 1) · mean completion
sync    = bytes of the weights / bandwidth between trainer and engine
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from etr.plan.assumptions import Assumption
from etr.plan.devices import Device
from etr.plan.job import Job, nodes_doubled
from etr.plan.models import Shape
from etr.plan.ranges import Range, at_once, exactly


@dataclass(frozen=True)
class Sheet:
    """Speeds of a device from its data sheet and the assumptions."""

    device: Device
    assumed: Mapping[str, Assumption]

    def training(self) -> Range:
        """Operations a second of one device while it trains."""
        return self.assumed["arithmetic while training"].value.scaled(self.device.flops)

    def rollout(self, job: Job, shape: Shape, load: Load) -> Range:
        """Seconds until the last completion of a batch."""
        apart = self.assumed["engine on several GPUs"].value if load.gpus > 1 else exactly(1)
        bandwidth = self.assumed["bandwidth while decoding"].value.scaled(load.gpus * self.device.bandwidth)
        decoding = self.assumed["arithmetic while decoding"].value.scaled(load.gpus * self.device.flops)
        reading = self.training().scaled(load.gpus)
        tokens = load.sequences * job.response_tokens
        context = job.prompt_tokens + job.response_tokens / 2
        embedding = 0 if shape.tied else shape.head  # one row of it is read, not all
        weights = exactly(load.steps * (shape.weights - embedding) * job.bytes_each).over(bandwidth)
        arithmetic = exactly(tokens * shape.forward_flops(context)).over(decoding)
        cache = exactly(tokens * context * shape.cache_bytes(job.bytes_each)).over(bandwidth)
        prompts = math.ceil(load.sequences / job.group_size) * job.prompt_tokens  # a prompt is read once per group
        prefill = exactly(prompts * shape.forward_flops(job.prompt_tokens / 2)).over(reading)
        overhead = self.assumed["overhead of a decoding step"].value.scaled(load.steps)
        return (at_once(weights, arithmetic) + cache + prefill).over(apart) + overhead


@dataclass(frozen=True)
class Load:
    """What one copy of the engine has to do: on `gpus` GPUs, `sequences` in all, `concurrent` at a time, in `steps`."""

    gpus: int
    sequences: int
    concurrent: int
    steps: float


def load(job: Job, gpus: int, concurrent: int) -> Load:
    """The share of one copy of the engine that has `gpus` GPUs and memory for `concurrent` sequences.

    >>> load(Job(gpus=8, prompts=16, group_size=8, response_tokens=100, longest_tokens=400), gpus=2, concurrent=16)
    Load(gpus=2, sequences=32, concurrent=16, steps=500.0)
    """
    sequences = math.ceil(job.sequences / max(1, job.engine_gpus // gpus))
    waiting = max(0.0, sequences / concurrent - 1.0)
    return Load(gpus, sequences, min(concurrent, sequences), job.longest + waiting * job.response_tokens)


def kept(job: Job, device: Device, assumed: Mapping[str, Assumption]) -> Range:
    """Share of the GPUs' training speed that is left on so many nodes, and where sequences do not divide evenly.

    The step lasts as long as the GPU with the most sequences: it is as if `busy` GPUs had all of them.
    """
    busy = job.sequences / math.ceil(job.sequences / job.trainer_gpus)
    doubled = nodes_doubled(busy, device)
    return assumed["lost a doubling of nodes"].value.map(lambda lost: busy / job.trainer_gpus * (1 - lost) ** doubled)


def pass_operations(job: Job, shape: Shape) -> float:
    """Operations of one forward pass over all tokens of a batch; the mean context is half the sequence."""
    return job.sequences * job.trained_length * shape.forward_flops(job.length / 2)


def training_seconds(job: Job, shape: Shape, rate: Range) -> tuple[Range, Range]:
    """Seconds of scoring and of all updates. rate: operations a second of all training GPUs together.

    Backward is twice a forward pass; recomputation adds one; LoRA needs no gradients of the frozen weights, which
    saves almost one of the two.
    """
    forward = pass_operations(job, shape)
    backward = 1 if job.lora_rank else 2
    passes = 1 + backward + (1 if job.gradient_checkpointing else 0)
    return (
        exactly(job.scoring_passes * forward).over(rate),
        exactly(job.updates * passes * forward).over(rate),
    )


def sync_seconds(job: Job, shape: Shape, assumed: Mapping[str, Assumption]) -> Range:
    """Seconds to bring the new weights to the engine; nothing on one GPU, where they are."""
    if job.gpus == 1:
        return exactly(0)
    return exactly(shape.weights * job.bytes_each).over(assumed["weights to the engine"].value)
