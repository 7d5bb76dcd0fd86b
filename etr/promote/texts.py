"""Texts of a promoted folder: the host's settings, launch scripts, data preparation, README."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, FunctionLoader, StrictUndefined

import etr
from etr.files import atomic_write
from etr.llm.data.rows import is_source
from etr.llm.rewards import combine
from etr.promote import llm
from etr.promote.gate import Verdict
from etr.promote.job import Job, whole_path
from etr.promote.quoting import bash_word, hydra_value
from etr.promote.recipes import FILE
from etr.promote.terms import Translation

SETTINGS = {"llm": llm.SETTINGS, "verl": "overrides.sh", "trl": "trl.yaml"}
README = "README.md"
SCRIPTS = {"llm": ("run.sh",), "trl": ("run.sh",), "verl": ("run.sh", "ray.sh", "slurm.sh")}


class Own(NamedTuple):
    """What is the user's own: the reward's reference as the folder names it, and the names of the copied files."""

    reward: str
    copies: Sequence[str] = ()


def write_settings(out: Path, job: Job, translation: Translation, reward: str) -> None:
    """The host's settings in a file that its launch reads."""
    if job.host == "llm":
        atomic_write(out / SETTINGS["llm"], _yaml({**llm.settings(job), "reward": reward}))
    elif job.host == "trl":
        content = {
            "model": job.model,
            "dataset": "data/train.jsonl",
            "reward": reward,
            "grading": {k: v for k, v in job.config.task_options.items() if k in combine.OPTIONS},
            "reward_timeout": job.config.reward_timeout,
            "recipe": FILE,
            "arguments": translation.settings(),
        }
        atomic_write(out / SETTINGS["trl"], _yaml(content))
    else:
        lines = [bash_word(f"{key}={hydra_value(value)}") for key, value in translation.settings().items()]
        text = "# What verl's Hydra config is told; read by run.sh, which knows $FOLDER. \n"
        atomic_write(out / SETTINGS["verl"], f"{text}OVERRIDES=(\n" + "".join(f"  {line}\n" for line in lines) + ")\n")


def write_texts(
    out: Path,
    job: Job,
    translation: Translation,
    own: Own,
    verdict: Verdict = Verdict(),  # noqa: B008  (frozen)
) -> None:
    """Launch scripts, data preparation and README."""
    templates = Environment(
        loader=FunctionLoader(_template), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, comment_start_string="<#", comment_end_string="#>",  # bash has {# of its own
    )  # fmt: skip
    facts = {
        "job": job, "config": job.config, "recipe": job.recipe, "terms": translation.terms,
        "warnings": [*translation.warnings, *verdict.warnings], "refused": verdict.refused, "copies": own.copies,
        "reward": own.reward, "card": verdict.path is not None, "version": etr.__version__,
        "answers": job.responses,
        "task": whole_path(job.config.task) if is_source(job.config.task) else job.config.task,
        "environment": {
            t.key.rpartition(".")[2]: t.value.strip("'") for t in translation.terms if ".runtime_env.env_vars." in t.key
        },
    }  # fmt: skip
    templates.filters |= {"cell": _cell, "code": _code}
    names = {README: README, **{name: f"{job.host}_{name}" for name in SCRIPTS[job.host]}}
    if job.host != "llm":
        names["prepare_data.py"] = "prepare_data.py"
    for name, template in names.items():
        atomic_write(out / name, templates.get_template(template).render(facts))


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|")


def _code(value: object) -> str:
    text = _cell(value)
    return f"`{text}`" if text else ""


def _template(name: str) -> str:
    return (files("etr.promote") / "templates" / f"{name}.j2").read_text(encoding="utf-8")


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
