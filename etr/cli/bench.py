"""`etr bench`: speed and memory, side by side in one run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from tyro.conf import Positional, arg

from etr.cli.options import console, print_table

Table = list[dict[str, Any]]
Part = Literal["iteration", "rollout", "log-probs", "growth"]


def bench(
    what: Positional[Literal["toy", "loss", "llm"]],
    json: Path | None = None,
    threads: int = 1,
    parts: Annotated[tuple[Part, ...], arg(name="part")] = ("iteration", "rollout", "log-probs", "growth"),
    peer_python: str | None = None,
    device: str = "auto",
    iterations: int = 3,
    tiny: bool = False,
) -> None:
    """Measure speed side by side in one run and print ratios.

    Examples: etr bench toy; etr bench loss --json loss.json; etr bench llm --part iteration rollout --threads 2

    Args:
        what: toy: the toy trainer, the same in JAX, a Gymnasium loop. loss: each objective, a plain PPO. llm: the LLM
            trainer with each engine, TRL, bare vLLM and transformers.
        json: File to write the numbers to.
        threads: CPU threads that torch may use.
        parts: llm: what to measure.
        peer_python: llm: an interpreter that has trl, if this one has not; also read from ETR_PEER_PYTHON.
        device: llm: cpu, cuda, or auto for a GPU where there is one.
        iterations: llm: measured repetitions, after one to warm up.
        tiny: llm: small random models instead of SmolLM2, to see that everything runs.
    """
    from etr.environment import environment
    from etr.files import atomic_write, to_json

    torch.set_num_threads(threads)
    _pin(threads)
    if what == "llm":
        tables = _llm(parts, threads, peer_python, device, iterations, tiny)
    else:
        tables = _toy() if what == "toy" else _loss()
    for title, rows in tables.items():
        header = list(dict.fromkeys(name for row in rows for name in row))
        print_table(title, header, [[_cell(row.get(name, "-")) for name in header] for row in rows])
    if json is not None:
        atomic_write(
            json, to_json({"bench": what, **tables, "environment": environment(), "cores": os.cpu_count()}, indent=1)
        )


def _pin(cores: int) -> None:
    """Keep this process on as many cores as it has threads: a peer's library may otherwise use them all."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def _toy() -> dict[str, Table]:
    from etr.bench.toy import PEERS, bench_growth, bench_memory, bench_toy

    speed = bench_toy()
    if not any(row["what"] in PEERS for row in speed):
        console.print("JAX is not installed, so its part is left out; to have it: pip install jax")
    return {
        "speed, 16 prompts x 10 arms, groups of 16, 4 updates": speed,
        "milliseconds of an iteration when one size doubles: linear is 2": bench_growth(),
        "memory": bench_memory(),
    }


def _loss() -> dict[str, Table]:
    from etr.bench.loss import bench_loss

    return {"loss and gradient of 64 x 1024 tokens": bench_loss()}


def _llm(
    parts: tuple[str, ...], threads: int, peer: str | None, device: str, iterations: int, tiny: bool
) -> dict[str, Table]:
    from etr.bench.llm import bench_llm

    return bench_llm(parts, threads, peer, device, iterations, tiny, _say)


def _say(message: str) -> None:
    console.print(f"etr: {message}", markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if isinstance(value, float)
        else str(value)
    )


COMMANDS = {"bench": bench}
