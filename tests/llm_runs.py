"""Trainers and runs on the tiny model, for the tests of whole runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from etr.llm import run
from etr.llm.config import TrainConfig
from etr.llm.setup import build
from etr.llm.train import Trainer
from etr.recipe import Recipe, load_recipe

CONFIG = TrainConfig(
    model="tiny-random", task="copy", steps=6, prompts=4, group_size=4, max_new_tokens=2, save_every=2,
    eval_items=6, eval_samples=2, device="cpu", engine="transformers",
)  # fmt: skip


def recipe(name: str = "etr", **fields: object) -> Recipe:
    return load_recipe(name, {"optimizer.lr": 3e-3, "optimizer.updates": 2, **fields})


def trainer(with_recipe: Recipe | None = None, **changes: object) -> Trainer:
    """A trainer as a run builds it."""
    return build(with_recipe or recipe(), replace(CONFIG, **changes), lambda text: None)  # type: ignore[arg-type]


def start(out: Path, config: TrainConfig = CONFIG, with_recipe: Recipe | None = None) -> list[str]:
    """Run to the end; returns what the run said."""
    said: list[str] = []
    run.start(with_recipe or recipe(), config, out, False, said.append, lambda *step: None)
    return said


def timeless(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Rows of metrics without what clock and system say."""
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "tokens_per_s", "memory"))} for row in rows]
