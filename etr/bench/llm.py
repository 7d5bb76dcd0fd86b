"""The LLM trainer beside TRL, vLLM and transformers on the same work in one run; every contender in its own process."""

from __future__ import annotations

import importlib
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from etr.bench import median_ratio
from etr.bench.llm_growth import bench_growth
from etr.bench.llm_process import MIB, Row, child, trl
from etr.bench.llm_work import Size, Work, endless, random_model
from etr.llm.setup import pick_device
from etr.llm.weights import smollm2_folder

Say = Callable[[str], None]
OURS = ("transformers", "vllm")
TINY: dict[str, Any] = {"prompts": 2, "group_size": 2, "tokens": 4}
TINY_WORK = {**TINY, "dtype": "float32", "peer_rows": 2}
TINY_SIZE = {**TINY, "vocabulary": 64, "hidden": 128, "layers": 1, "repeats": 1}


def bench_llm(
    parts: Sequence[str], threads: int, peer: str | None, device: str, iterations: int, tiny: bool, say: Say
) -> dict[str, list[Row]]:
    """A table for each part. Raises InputError for a device that is not there. tiny: to see that everything runs."""
    shared: dict[str, Any] = {"device": pick_device(device).type, "threads": threads}
    work = Work("", iterations=iterations, **shared, **(TINY_WORK if tiny else {}))
    size = Size(**{**shared, "repeats": iterations, **(TINY_SIZE if tiny else {})})
    tables: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        if not {"iteration", "rollout"}.isdisjoint(parts):
            if tiny:
                random_model(size, folder)
            work = replace(work, model=str(folder if tiny else endless(smollm2_folder(), folder)))
        title = f"{work.prompts} prompts x {work.group_size} samples x {work.tokens} tokens"
        if "iteration" in parts:
            tables[f"one rollout and {work.updates} updates, {title}"] = bench_iteration(work, peer, say)
        if "rollout" in parts:
            tables[f"rollout alone, {title}"] = bench_rollout(work, say)
    if "log-probs" in parts:
        tables |= log_probs_tables(shared["device"], tiny, say)
    if "growth" in parts:
        tables["growth: a step of a small random model when one size doubles"] = bench_growth(size, say)
    return {name: rows for name, rows in tables.items() if rows}


def log_probs_tables(device: str, tiny: bool, say: Say) -> dict[str, list[Row]]:
    """`etr.bench.log_probs`: chunked against full logits, and Liger where it is installed."""
    try:
        log_probs = importlib.import_module("etr.bench.log_probs")
    except ModuleNotFoundError:
        say("log-probs is left out: etr.bench.log_probs is not here")
        return {}
    found: dict[str, list[Row]] = log_probs.bench_log_probs(device=device, tiny=tiny)
    return found


def bench_iteration(work: Work, peer: str | None, say: Say) -> list[Row]:
    """A rollout and its updates: seconds of an iteration and peak memory, ours with each engine and TRL's.

    peer: an interpreter that has trl, by default the environment's ETR_PEER_PYTHON, then this one.
    """
    results = {}
    for engine in OURS:
        say(f"etr with engine {engine} ...")
        results[f"etr, {engine}"] = child("iteration", replace(work, engine=engine))
    say("TRL's GRPOTrainer ...")
    results["trl"] = trl(work, peer)
    return iteration_rows(results, say)


def iteration_rows(results: dict[str, Row], say: Say) -> list[Row]:
    """Medians over the iterations after the first; ratios to TRL where it ran. A contender that did not run is said."""
    rows: list[Row] = []
    skipped = {name: result["skipped"] for name, result in results.items() if "skipped" in result}
    for name, reason in skipped.items():
        say(f"{name} is left out: {reason}")
    theirs = None if "trl" in skipped else results["trl"]
    for name, result in results.items():
        if name in skipped:
            continue
        seconds = result["iteration"][1:]
        row = {
            "what": name,
            "iteration s": statistics.median(seconds),
            "from": min(seconds),
            "to": max(seconds),
            "rollout s": statistics.median(result["rollout"][1:]),
            "CPU s": statistics.median(result["cpu"][1:]),
            "tokens": result["tokens"][-1],
            "peak MiB": result["peak"] / MIB,
            "engine MiB": result.get("engine_bytes", 0) / MIB,
        }
        if theirs is not None:
            for title, key in (("trl / it, time", "iteration"), ("trl / it, CPU time", "cpu")):
                row[title] = statistics.median(theirs[key][1:]) / statistics.median(result[key][1:])
            row["it / trl, peak"] = result["peak"] / theirs["peak"]
        rows.append(row)
    return rows


def bench_rollout(work: Work, say: Say) -> list[Row]:
    """Sampled tokens per second of each engine, and of what is inside it called by hand; overhead is ours over that."""
    rows: list[Row] = []
    for engine in OURS:
        say(f"rollout with {engine} ...")
        result = child("rollout", replace(work, engine=engine))
        if "skipped" in result:
            say(f"{engine} is left out: {result['skipped']}")
            continue
        seconds = result["seconds"]
        bare = seconds[f"bare {engine}"]
        rows += [
            {
                "what": name,
                "tokens/s": result["tokens"] / statistics.median(times),
                "seconds / bare": median_ratio(times, bare),
            }
            for name, times in seconds.items()
        ]
    return rows
