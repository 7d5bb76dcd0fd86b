"""Turn finished LLM runs into what this folder keeps: numbers as JSON and one picture of their curves.

    python docs/results/summarise.py NAME RUN [RUN ...]

writes NAME.json (settings, versions, every step, held-out results, first and last ten steps) and NAME.png here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from etr.files import atomic_write, read_json, to_json
from etr.plots import llm_curves, png
from etr.runs import read_config, read_metrics

HERE = Path(__file__).parent
ENDS = 10
KEPT = ("etr", "git_commit", "python", "platform", "packages", "cuda", "threads")


def summary(run: Path) -> dict[str, Any]:
    """One run as plain values."""
    config, rows, environment = read_config(run), read_metrics(run), read_json(run / "environment.json")
    means = {
        name: {
            "first": sum(r[name] for r in rows[:ENDS]) / ENDS,
            "last": sum(r[name] for r in rows[-ENDS:]) / ENDS,
        }
        for name in ("reward", "entropy", "kl", "truncated", "group/homogeneous_frac")
    }
    return {
        "recipe": config["recipe"],
        "settings": config["settings"],
        "environment": {key: environment[key] for key in KEPT},
        f"mean over the first and last {ENDS} steps": means,
        "minutes": sum(r["seconds"] for r in rows) / 60,
        "held-out": read_json(run / "eval.json"),
        "samples": read_json(run / "samples.json"),
        "steps": rows,
    }


def main(name: str, *folders: str) -> None:
    runs = {read_config(Path(f))["recipe"]["name"]: Path(f) for f in folders}
    atomic_write(HERE / f"{name}.json", to_json({k: summary(run) for k, run in runs.items()}, indent=1) + "\n")
    atomic_write(HERE / f"{name}.png", png(llm_curves({k: read_metrics(run) for k, run in runs.items()})))


if __name__ == "__main__":
    main(*sys.argv[1:])
