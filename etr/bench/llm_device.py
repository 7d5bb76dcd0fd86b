"""The parts of docs/results/gpu.py that measure: the device against the CPU, speed and memory, log-probs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from etr.bench.llm_work import QUESTIONS, Size, random_model, write_questions
from etr.environment import environment
from etr.errors import InputError
from etr.files import atomic_write, to_json
from etr.llm.config import TrainConfig
from etr.llm.doctor import examine
from etr.llm.models import TINY, load_model
from etr.recipe import load_recipe

ROOT = Path(__file__).parent.parent.parent
DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}  # dense bfloat16 FLOP/s
TESTS = ("log_probs", "packing", "optimizers", "policy", "lora", "rollout", "canary", "vllm")
SHAPE = Size(vocabulary=49152, hidden=576, layers=30)  # about SmolLM2-135M's, where its weights are not at hand


class Part:
    """The file of one part: `put` replaces it as a whole, so that it is always readable."""

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        self.options, self.path = options, options.out / f"{name}.json"
        self.deadline = time.monotonic() + 60 * options.minutes
        self.values: dict[str, Any] = {"environment": environment(), "device": str(device())}

    @property
    def left(self) -> float:
        """Seconds."""
        return float(self.deadline) - time.monotonic()

    def put(self, **values: Any) -> None:
        self.values |= values
        atomic_write(self.path, to_json(self.values, indent=1) + "\n")


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checks(part: Part) -> None:
    """The tests that meet the device, where pytest is installed; and one batch's log-probs here and on the CPU."""
    from etr.llm.policy import Policy
    from etr.llm.rollout import request_seeds
    from etr.llm.rollout.transformers_engine import TransformersEngine

    here, there = load_model(TINY), load_model(TINY)
    here.model.to(device())
    rollout = TransformersEngine(there, 12).generate([[5, 6, 7], [8, 9]], 4, request_seeds(0, 1, [0, 1], 4))
    moved = dataclasses.replace(
        rollout, **{f: getattr(rollout, f).to(device()) for f in ("sequences", "attention_mask", "response_mask")}
    )
    found = {}
    with torch.no_grad():
        expected, _ = Policy(there, packing="padded").log_probs(rollout, slice(0, 8))
        for packing in ("auto", "padded"):
            ours, _ = Policy(here, packing=packing).log_probs(moved, slice(0, 8))
            found[packing] = float((ours.cpu() - expected).abs().max())
    part.put(largest_difference_to_cpu=found)
    if importlib.util.find_spec("pytest") is None or part.options.tiny:
        part.put(tests="left out: no pytest here, or --tiny")
        return
    files = [str(path) for name in TESTS for path in sorted((ROOT / "tests").glob(f"test_llm_{name}*.py"))]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(1.0, part.left - 5))
        part.put(tests=done.stdout.splitlines()[-15:], status=done.returncode)
    except subprocess.TimeoutExpired:
        part.put(tests=f"not done after {part.options.minutes:.1f} minutes")


def speed(part: Part) -> None:
    """The doctor's measurement of several settings: tokens/s, memory against the plan, share of the peak FLOP/s."""
    with tempfile.TemporaryDirectory() as folder:
        base, model = base_config(part.options, Path(folder))
        part.put(model=model, matmul_flops=matmul_flops(part.options.tiny))
        rows: list[dict[str, Any]] = []
        engines = ["transformers"] + ["vllm"] * (importlib.util.find_spec("vllm") is not None and not part.options.tiny)
        for changes in ({}, {"gradient_checkpointing": True}, {"packing": "padded"}, {"dtype": "float32"}):
            for engine in engines if not changes else engines[:1]:
                if part.left < 20 and rows:
                    part.put(stopped="the minutes are over")
                    return
                config = dataclasses.replace(base, engine=engine, **changes)
                try:
                    found = examine(load_recipe("etr", {"optimizer.updates": 2}), config, measuring=True)
                    rows.append({"settings": {**changes, "engine": engine}, **found.as_dict(), **used_flops(found)})
                except (InputError, RuntimeError) as error:  # one setting that does not fit must not end the others
                    rows.append({"settings": {**changes, "engine": engine}, "error": str(error).splitlines()[0]})
                part.put(rows=rows)


def used_flops(found: Any) -> dict[str, Any]:
    """Model FLOP/s of the update and its share of the data sheet's: 6 · weights · tokens, each prompt once an update.

    Attention's scores and recomputation are left out of the count, as usual.
    """
    measured, gpu = found.measured, found.machine["gpu"]
    per_second = 6 * measured.weights * measured.read / measured.seconds["update"]
    sheet = next((peak for key, peak in DATA_SHEET.items() if gpu and key in gpu["name"]), None)
    return {"model_flops_of_update": per_second, "share_of_data_sheet": per_second / sheet if sheet else None}


def matmul_flops(tiny: bool) -> float:
    """FLOP/s of a large bfloat16 matrix product here: what could be reached at best."""
    n, times = (256, 2) if tiny else (8192, 10)
    a = torch.randn(n, n, device=device(), dtype=torch.bfloat16)
    for repeats in (1, times):
        wait()
        start = time.perf_counter()
        for _ in range(repeats):
            a @ a
        wait()
    return 2 * n**3 * times / (time.perf_counter() - start)


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def base_config(options: argparse.Namespace, folder: Path) -> tuple[TrainConfig, str]:
    """Settings of the speed part, and a word on the model: real weights where they are, their shape where not."""
    try:
        load_model(options.model)
        name, word = options.model, "its weights"
    except InputError as error:
        random_model(SHAPE, folder / "model")
        name, word = str(folder / "model"), f"random weights of about its shape ({error})"
    task = str(write_questions(folder / "questions.jsonl", QUESTIONS))
    small = options.tiny
    return TrainConfig(
        model=name, task=task, reward="etr.bench.llm_work:vowels", dtype="float32" if small else "bfloat16",
        prompts=2 if small else 32, group_size=2 if small else 8, max_new_tokens=4 if small else 256,
        micro_batch_tokens=256 if small else 32768, engine="transformers", device=device().type, eval_items=0,
    ), f"{options.model}: {word}"  # fmt: skip


def log_probs(part: Part) -> None:
    """`etr bench llm --part log-probs`: ours beside full logits, and Liger where it is installed."""
    target = part.path.with_name("bench-log-probs.json")
    command = [sys.executable, "-m", "etr", "bench", "llm", "--part", "log-probs", "--json", str(target)]
    command += ["--device", device().type] + ["--tiny"] * part.options.tiny
    done = subprocess.run(command, capture_output=True, text=True, timeout=max(1.0, part.left))
    part.put(status=done.returncode, file=target.name, output=(done.stdout + done.stderr).splitlines()[-40:])
