"""The peer: the same work done by TRL's GRPOTrainer. Run as a file by an interpreter that has trl; imports no `etr`.

    python llm_trl.py '{"model": "folder", "questions": ["..."], ...}'     (see `etr.bench.llm_work.Work`)

Prints one line of JSON: seconds of each iteration, of its rollout with scoring, processor seconds, peak memory.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def vowels(completions: list[Any], **_: Any) -> list[float]:
    """Share of vowels: a reward that costs nothing and differs within a group."""
    texts = [completion if isinstance(completion, str) else completion[0]["content"] for completion in completions]
    return [sum(text.count(letter) for letter in "aeiou") / max(1, len(text)) for text in texts]


def settings(work: dict[str, Any]) -> dict[str, Any]:
    """GRPOConfig's arguments: one rollout of all answers, then `updates` optimiser steps, each over all of them."""
    size, rows = work["prompts"] * work["group_size"], work["peer_rows"]
    return {
        "output_dir": tempfile.mkdtemp(), "use_cpu": work["device"] == "cpu", "seed": 0, "report_to": "none",
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "bf16": False,
        "model_init_kwargs": {"dtype": work["dtype"]}, "gradient_checkpointing": work["peer_checkpointing"],
        "per_device_train_batch_size": rows, "gradient_accumulation_steps": size // rows,
        "num_generations": work["group_size"], "num_iterations": work["updates"],
        "max_completion_length": work["tokens"], "temperature": 1.0, "loss_type": "grpo", "beta": 0.0,
        "learning_rate": 1e-6, "lr_scheduler_type": "constant",
        "max_steps": work["updates"] * (work["iterations"] + 1),
    }  # fmt: skip


def run(work: dict[str, Any]) -> dict[str, Any]:
    """Train, and take the time of every step from outside."""
    import torch
    from datasets import Dataset  # type: ignore[import-untyped,import-not-found,unused-ignore]
    from transformers import AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer  # type: ignore[import-not-found,import-untyped,unused-ignore]

    torch.set_num_threads(work["threads"])
    marks: list[tuple[float, float]] = []  # clock and processor seconds at each step's start, and at the end
    rollouts: list[float] = []
    tokens: list[int] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            marks.append((time.perf_counter(), time.process_time()))

        on_train_end = on_step_begin

    class Timed(GRPOTrainer):  # type: ignore[misc,unused-ignore]
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            start = time.perf_counter()
            out = super()._generate_and_score_completions(inputs)
            rollouts.append(time.perf_counter() - start)
            tokens.append(int(out["completion_mask"].sum()))
            return out

    chat = AutoTokenizer.from_pretrained(work["model"]).chat_template is not None
    questions = work["questions"][: work["prompts"]]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": q}] if chat else q for q in questions]})
    Timed(work["model"], vowels, args=GRPOConfig(**settings(work)), train_dataset=data, callbacks=[Clock()]).train()
    steps = marks[:: work["updates"]]  # the start of each iteration, and the end
    clock, cpu = ([b[i] - a[i] for a, b in itertools.pairwise(steps)] for i in range(2))
    peak = torch.cuda.max_memory_allocated() if work["device"] != "cpu" else 1024 * max_resident()
    versions = {name: version(name) for name in ("trl", "transformers", "torch")}
    return {"iteration": clock, "cpu": cpu, "rollout": rollouts, "tokens": tokens, "peak": peak, "versions": versions}


def max_resident() -> int:
    """Peak resident memory of this process, kilobytes; that of the process which started it is not in it (Linux)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
