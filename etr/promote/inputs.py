"""What a run will read, looked at before its folder is written: the questions, and the place of the model."""

from __future__ import annotations

from pathlib import Path

from etr.errors import InputError
from etr.llm.models import BUILT_IN
from etr.llm.tasks import load_task
from etr.promote.job import Job


def check_inputs(job: Job) -> list[str]:
    """Load the task as the run will; returns sentences on what only the run can find out.

    Raises InputError for a task that cannot be loaded or is too small for the host, and for a model that is not there.
    """
    config = job.config
    task = load_task(config.task, split="train", seed=config.seed, config=config.task_options)
    if config.eval_items:
        load_task(config.task, split="held-out", size=config.eval_items, seed=config.seed, config=config.task_options)
    if job.host != "llm" and len(task.items) < config.prompts:  # ours begins the next pass within a batch
        raise InputError(
            f"task '{config.task}' has {len(task.items)} training questions, and {job.host} wants at least --prompts "
            f"{config.prompts} of them; lower --prompts or give a larger task"
        )
    return _model(job)


def _model(job: Job) -> list[str]:
    name = job.config.model
    if name in BUILT_IN or Path(name).expanduser().exists():
        return []
    if job.host == "verl" and name.startswith("/"):  # a cluster's folder, which the machine at hand need not have
        return [f"there is no '{name}' on this machine; it has to be on every node"]
    if name.startswith((".", "/", "~")):
        raise InputError(f"there is no model folder '{name}'; give a Hugging Face folder, a hub id or {BUILT_IN[0]}")
    return [f"'{name}' is no folder here, so the run will ask the Hugging Face hub for it"]
