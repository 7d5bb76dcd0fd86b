"""Everything that needs a GPU, in one call; numbers are left as JSON, each part's as soon as it has any.

    python docs/results/gpu.py --out "$OUT" --minutes 25 [--parts checks speed log-probs compare] [--gsm8k FILE]

Needs torch and transformers; vLLM, Liger and the weights of SmolLM2 are used where they are. Parts run in processes of
their own, one after another, each with its share of the minutes, so that none takes the others down or their time.
On a machine without a GPU --tiny runs all of it on small random models.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from etr.bench.llm_device import Part, checks, device, log_probs, speed
from etr.errors import InputError
from etr.llm import run
from etr.llm.config import TrainConfig
from etr.llm.models import TINY, load_model
from etr.llm.toy_tasks import TOY_LLAMA
from etr.llm.weights import SMOLLM2
from etr.recipe import load_recipe
from etr.runs import read_metrics
from etr.stats import bootstrap

SHARES = {"checks": 0.15, "speed": 0.2, "log-probs": 0.15, "compare": 0.5}  # of the minutes
RECIPES = ("etr", "grpo", "grpo_wide")
CURVES = ("reward", "entropy", "held_out/pass@1", "zero_grad_frac", "kl")


def compare(part: Part) -> None:
    """Each recipe on each task with each seed at equal budget; after every run, curves with intervals over seeds."""
    options, runs, longest = part.options, [], 0.0
    for task in tasks(options):
        for seed in range(options.seeds):
            for recipe in RECIPES:  # seeds outside, so that whatever is done when time ends is a fair comparison
                if longest > part.left:
                    part.put(stopped=f"{len(runs)} runs done; the next would outlast the minutes")
                    return
                start = time.monotonic()
                config = dataclasses.replace(task, seed=seed)
                folder = options.out / "runs" / f"{Path(task.task).stem}-{recipe}-{seed}"
                run.start(
                    load_recipe(recipe, {"optimizer.updates": 4}), config, folder, True, print, lambda *step: None
                )
                longest = max(longest, time.monotonic() - start)
                rows = [{k: row.get(k) for k in ("step", *CURVES)} for row in read_metrics(folder)]
                runs.append({"task": task.task, "recipe": recipe, "seed": seed, "steps": rows})
                part.put(settings=dataclasses.asdict(task), runs=runs, curves=curves(runs))


def tasks(options: argparse.Namespace) -> list[TrainConfig]:
    """What is compared: SmolLM2 on arithmetic and GSM8K; without its weights the toy Llama on its own task."""
    if options.tiny:
        tiny = TrainConfig(TINY, "copy", steps=2, prompts=2, group_size=2, max_new_tokens=2, engine="transformers")
        return [dataclasses.replace(tiny, eval_items=2, eval_samples=2, eval_every=1)]
    shared = {"device": device().type, "engine": "auto", "eval_items": 200, "eval_samples": 4, "eval_every": 20}
    try:
        load_model(options.model)
    except InputError:
        toy = TrainConfig(TOY_LLAMA, "mod-arithmetic", steps=200, prompts=32, group_size=16, **shared)
        return [dataclasses.replace(toy, engine="transformers")]
    real = {"model": options.model, "dtype": "bfloat16", "micro_batch_tokens": 32768, **shared}
    found = [TrainConfig(task="arithmetic", steps=200, prompts=16, group_size=16, max_new_tokens=16, **real)]
    if options.gsm8k:
        long = TrainConfig(task=str(options.gsm8k), steps=200, prompts=16, group_size=16, max_new_tokens=256, **real)
        found.append(dataclasses.replace(long, reward="numeric"))
    return found


def curves(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over seeds of each curve with a 95 % bootstrap interval, by task and recipe."""
    found: dict[str, Any] = {}
    for key in {(row["task"], row["recipe"]) for row in runs}:
        same = [row["steps"] for row in runs if (row["task"], row["recipe"]) == key]
        for name in CURVES:
            points = []
            for rows in zip(*same, strict=False):
                values = [point[name] for point in rows if point[name] is not None]
                if values:
                    points.append([rows[0]["step"], *interval(values)])
            found[f"{Path(key[0]).stem}/{key[1]}/{name}"] = points
    return found


def interval(values: list[float]) -> tuple[float, ...]:
    """Mean with its interval; of a single seed only the mean is known."""
    data = torch.tensor(values, dtype=torch.float64)
    if len(values) == 1:
        return (values[0],)
    return tuple(bootstrap(data, lambda x: x.mean(-1), torch.Generator().manual_seed(0)))


PARTS: dict[str, Callable[[Part], None]] = {
    "checks": checks, "speed": speed, "log-probs": log_probs, "compare": compare,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--gsm8k", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--inside", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.inside:
        return inside(options)
    total = sum(SHARES[name] for name in options.parts)
    for name in options.parts:
        minutes = options.minutes * SHARES[name] / total
        command = [sys.executable, __file__, *(arguments or sys.argv[1:]), "--inside", name, "--minutes", str(minutes)]
        print(f"{name}: at most {minutes:.1f} minutes", flush=True)
        try:
            subprocess.run(command, timeout=60 * minutes + 30)
        except subprocess.TimeoutExpired:
            print(f"{name}: stopped; what it had is in {options.out / name}.json", flush=True)
    return 0


def inside(options: argparse.Namespace) -> int:
    """One part; what goes wrong in it is in its file."""
    part = Part(options, options.inside)
    try:
        part.put()
        PARTS[options.inside](part)
        part.put(done=True)
        return 0
    except Exception:  # the other parts go on, and a reader of the file must see what this one met
        part.put(error=traceback.format_exc())
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
