"""`python -m etr.adapters.trl FOLDER`: trains what `etr promote --to trl` wrote.

`trl.yaml` there holds model, dataset (a file of JSON lines: prompt, answer, and scorer and entry where given), reward
(a name, or auto for the rows' scorer), recipe (a file) and arguments (those of GRPOConfig); paths start in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from etr.adapters.trl.rewards import TaskReward
from etr.errors import InputError, unknown
from etr.llm.data.rows import read_rows
from etr.llm.models import BUILT_IN, load_model
from etr.llm.rewards.grader import AUTO
from etr.promote.recipes import promoted_reference, read_promoted
from etr.recorded import FILE

SETTINGS = "trl.yaml"
KEYS: dict[str, type] = {"model": str, "dataset": str, "reward": str, "recipe": str, "arguments": dict}
OPTIONAL: dict[str, type | tuple[type, ...]] = {"grading": dict, "reward_timeout": (int, float)}
USAGE = "usage: python -m etr.adapters.trl FOLDER    (FOLDER: written by etr promote RECIPE --to trl)"


def main(words: Sequence[str] | None = None) -> int:
    """Run a promoted folder, from its last checkpoint if there is one; returns an exit code."""
    given = sys.argv[1:] if words is None else list(words)
    if len(given) != 1 or given[0].startswith("-"):
        print(f"{USAGE}\n\n{__doc__}", file=sys.stderr)
        return 0 if given in (["-h"], ["--help"]) else 2
    try:
        run(Path(given[0]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(folder: Path) -> Any:
    """Train; returns the trainer. The final model and the log are written to the folder's output_dir."""
    folder = folder.resolve()
    settings = read_settings(folder)
    recipe = read_promoted(folder / settings["recipe"])
    rows = [row for _, row in read_rows(str(folder / settings["dataset"]))]
    scorer = promoted_reference(folder, one_scorer(settings["reward"], rows))
    from etr.adapters.trl import ETRGRPOTrainer  # the version is checked before anything is loaded

    config = make_config(folder, settings["arguments"])
    model, tokenizer = policy(settings["model"])
    timeout = float(settings.get("reward_timeout", 10.0))
    with TaskReward(scorer, settings.get("grading"), timeout) as reward:
        trainer = ETRGRPOTrainer(
            model, reward, config, train_dataset=dataset(rows, tokenizer), processing_class=tokenizer,
            recipe=recipe, reward_range=reward.bounds, record=folder / FILE,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=any(Path(config.output_dir).glob("checkpoint-*")))
    trainer.save_model()
    trainer.save_state()
    return trainer


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of trl.yaml. Raises InputError when it is missing, broken or incomplete."""
    path = folder / SETTINGS
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"cannot read '{path}' ({reason}); give a folder that etr promote --to trl wrote") from error
    if not isinstance(found, dict):
        raise InputError(f"'{path}' holds no settings; promote the recipe again")
    for key in found:
        if key not in {*KEYS, *OPTIONAL}:
            raise InputError(f"'{path}': " + unknown("key", str(key), {*KEYS, *OPTIONAL}))
    for key, kind in KEYS.items():
        if not isinstance(found.get(key), kind):
            raise InputError(f"'{path}' has no {key} ({kind.__name__}); promote the recipe again")
    return found


def one_scorer(reward: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The reward of a run: the one that is named, or for auto the one that all rows name."""
    if reward != AUTO:
        return reward
    found = {str(row.get("scorer")) for row in rows}
    if len(found) != 1 or found == {"None"}:
        raise InputError(
            f"reward is auto, but the rows name {', '.join(sorted(found))} as scorer; name one reward in {SETTINGS}"
        )
    return found.pop()


def make_config(folder: Path, values: Mapping[str, Any]) -> Any:
    """The GRPOConfig of a run. Raises InputError for arguments that this TRL does not know or accept."""
    from trl import GRPOConfig

    known = [field.name for field in fields(GRPOConfig)]
    for name in values:
        if name not in known:
            raise InputError(unknown("argument of GRPOConfig:", name, known))
    try:
        return GRPOConfig(**{**values, "output_dir": str(folder / str(values.get("output_dir", "run")))})
    except (ValueError, TypeError) as error:
        raise InputError(f"TRL refuses the arguments in {SETTINGS}: {error}") from error


def policy(name: str) -> tuple[Any, Any]:
    """Model and tokenizer; a folder or a hub's model is left to TRL, which loads it in its own number format."""
    if name in BUILT_IN:
        found = load_model(name)
        return found.model, found.tokenizer
    from transformers import AutoTokenizer

    try:
        return name, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"model '{name}' cannot be loaded ({str(error).splitlines()[0]}); check the name") from error


def dataset(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Any:
    """TRL's dataset: prompts as messages where the tokenizer has a chat template, as plain text otherwise."""
    from datasets import Dataset

    def prompt(messages: Any) -> Any:
        if isinstance(messages, str) or tokenizer.chat_template is not None:
            return messages
        return "\n".join(message["content"] for message in messages)  # as `etr.llm.tasks.encode` does

    columns: dict[str, list[Any]] = {"prompt": [prompt(row["prompt"]) for row in rows]}
    for name in ("answer", "entry"):
        if any(row.get(name) is not None for row in rows):
            columns[name] = [row.get(name) for row in rows]
    return Dataset.from_dict(columns)
