"""A run of our own trainer: its settings are its own terms."""

from __future__ import annotations

import dataclasses
from typing import Any

from etr.errors import InputError
from etr.llm.data.rows import is_source
from etr.llm.train import SUPPLIES
from etr.promote.job import Job, whole_path
from etr.promote.terms import Term, Translation

RECIPE, SETTINGS = "recipe.yaml", "train.yaml"
MEANING = {
    "prompts": "prompts of a rollout batch",
    "group_size": "answers to each prompt, G",
    "steps": "rollout batches",
    "max_new_tokens": "longest answer",
    "temperature": "of sampling and of all log-probs",
    "micro_batch_tokens": "tokens of a forward pass; any value gives the same gradient",
}


def translate(job: Job) -> Translation:
    """All settings of a run. Raises InputError for what our trainer cannot do."""
    if job.nodes > 1:
        raise InputError("our own trainer runs on one node; for several give --to verl")
    if job.host_settings:
        raise InputError("--host-set is for other people's trainers; --to llm has all settings as options of its own")
    job.recipe.objective.require(SUPPLIES, "the LLM trainer")
    if job.config.prompts % job.processes:
        raise InputError(
            f"{job.config.prompts} prompts cannot be shared by {job.gpus} GPUs; change --prompts or --gpus"
        )
    updates, lr = job.recipe.optimizer.updates, job.recipe.optimizer.lr
    fixed = [
        Term("optimizer.updates", RECIPE, updates, "passes over the whole batch, an optimiser step each: K"),
        Term("optimizer.lr", RECIPE, job.lr, "learning rate" + ("" if lr is not None else " (this trainer's default)")),
        Term(
            "aggregation",
            RECIPE,
            job.recipe.objective.aggregation,
            "with one denominator for all micro-batches and processes of a step",
        ),
    ]
    return Translation([*fixed, *(Term(k, SETTINGS, v, MEANING.get(k, "")) for k, v in settings(job).items())])


def settings(job: Job) -> dict[str, Any]:
    """The settings of `etr train`, with paths that hold from every folder."""
    found = dataclasses.asdict(job.config)
    for name in ("model", "templates"):
        found[name] = whole_path(found[name])
    if is_source(job.config.task):
        found["task"] = whole_path(job.config.task)
    return {**found, "track": list(job.config.track)}
