"""Speeds that were measured on one device: what `etr doctor --measure --json` or docs/results/gpu.py wrote."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.plan.job import Job
from etr.plan.models import Shape
from etr.plan.ranges import Range, exactly
from etr.plan.speed import Load


@dataclass(frozen=True)
class Profile:
    """One measured step on one device.

    device: its name; on_gpu; operations: of training, a second (6 · weights · tokens read, over the update's seconds);
    weights: of the model; completions, answer: batch and longest completion of the rollout, which took `rollout`
    seconds; memory: bytes of the device.
    """

    device: str
    on_gpu: bool
    operations: float
    weights: int
    completions: int
    answer: int
    seconds: float
    memory: float

    def training(self) -> Range:
        """Operations a second of one device while it trains, as measured."""
        return exactly(self.operations)

    def rollout(self, job: Job, shape: Shape, load: Load) -> Range:
        """Seconds until the last completion: the measured seconds of a decoding step, for other weights and batches.

        A step takes longer in proportion to the weights. With the batch it takes longer in proportion where arithmetic
        is short (bad; always on a CPU), and not at all where bandwidth is (good); mid lies between, geometrically.
        """
        step = self.seconds / self.answer * shape.multiplied / (self.weights * load.gpus)
        larger = max(1.0, load.concurrent / self.completions) if self.on_gpu else load.concurrent / self.completions
        if not self.on_gpu:
            tokens = load.sequences * job.response_tokens / load.concurrent  # steps with the batch full
            return exactly(step * larger * tokens)
        return Range(step, step * math.sqrt(larger), step * larger).scaled(load.steps)


def read_profile(path: Path) -> Profile:
    """The profile in a file. Raises InputError if it is missing, or is no measurement."""
    values = read_json(path)
    rows = values.get("rows") if isinstance(values, dict) else None
    if rows:  # docs/results/gpu.py writes several settings; without recomputation, and the fastest engine
        plain = [row for row in rows if row.get("measured") and set(row.get("settings", {})) <= {"engine"}]
        values = max(plain, key=lambda row: row["measured"]["throughput"]["rollout"], default=None)
    measured = values.get("measured") if isinstance(values, dict) else None
    if not measured:
        raise InputError(f"'{path}' holds no measured step; write one with: etr doctor --measure --json {path.name}")
    try:
        return _profile(values, measured)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"'{path}' misses {error} of a measured step; measure again with this version") from error


def _profile(values: dict[str, Any], measured: dict[str, Any]) -> Profile:
    gpu = values["machine"]["gpu"] if values["device"].startswith("cuda") else None
    return Profile(
        device=gpu["name"] if gpu else f"one {values['machine']['processor']}",
        on_gpu=gpu is not None,
        operations=6 * measured["weights"] * measured["read"] / measured["seconds"]["update"],
        weights=measured["weights"],
        completions=measured["work"]["completions"],
        answer=measured["work"]["answer"],
        seconds=measured["seconds"]["rollout"],
        memory=float((gpu or values["machine"])["memory"]),
    )
