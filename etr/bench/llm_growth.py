"""How a training step's time and memory grow with group size, answer length and vocabulary, on small random models."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from etr.bench.llm_child import trainer_for
from etr.bench.llm_process import MIB, child
from etr.bench.llm_work import Size, Work, random_model
from etr.llm.doctor.measure import measured_step
from etr.llm.peak import Peak

Row = dict[str, Any]
FACTORS = (1, 2, 4)


def bench_growth(base: Size, say: Callable[[str], None]) -> list[Row]:
    """Milliseconds of rollout and update and peak memory when one size doubles: linear time means a ratio of 2."""
    rows: list[Row] = []
    measured: dict[Size, Row] = {}
    for what in ("group_size", "tokens", "vocabulary"):
        for factor in FACTORS:
            size = replace(base, **{what: factor * getattr(base, what)})
            if size not in measured:
                say(f"growth: {what} {getattr(size, what)} ...")
                measured[size] = child("growth", size, module="etr.bench.llm_growth")
            found, first = measured[size], measured[base]
            rows.append(
                {
                    "what": what,
                    "value": getattr(size, what),
                    "rollout ms": 1000 * found["rollout"],
                    "update ms": 1000 * found["update"],
                    "rollout / first": found["rollout"] / first["rollout"],
                    "update / first": found["update"] / first["update"],
                    "peak MiB": found["peak"] / MIB,
                    "peak / first": found["peak"] / first["peak"],
                }
            )
    return rows


def step_of(size: Size) -> Row:
    """Median seconds of the phases of a step, and peak memory above what was there before the model."""
    import torch

    from etr.llm.setup import pick_device

    torch.set_num_threads(size.threads)
    memory = Peak(pick_device(size.device))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_model(size, folder / "model")
        work = Work(
            str(folder / "model"), prompts=size.prompts, group_size=size.group_size, tokens=size.tokens, updates=1,
            dtype=size.dtype, device=size.device, threads=size.threads, micro_batch_tokens=size.micro_batch_tokens,
            questions=tuple(f"w{10 + i} w{20 + i} w{30 + i} w{40 + i}" for i in range(64)),
        )  # fmt: skip
        with trainer_for(work, folder) as trainer:
            trainer.step(1)
            steps = [measured_step(trainer, memory, step) for step in range(2, 2 + size.repeats)]
    phases = ("rollout", "update")
    seconds = {name: statistics.median(step.seconds[name] for step in steps) for name in phases}
    return {**seconds, "peak": max(max(step.peaks.values()) for step in steps)}


if __name__ == "__main__":
    print(json.dumps(step_of(Size(**json.loads(sys.argv[2])))))
