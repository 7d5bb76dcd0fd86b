"""Procedural tasks of reasoning-gym, with its own scorers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from etr.errors import FieldError, InputError, unknown
from etr.llm.extensions import TASKS
from etr.llm.items import Config, Item, user
from etr.llm.rewards.scores import GYM
from etr.llm.toy_tasks import TOY_TASKS

ARITHMETIC = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
EXAMPLE = ("2 + 3", "= 5")
GALLERY = "https://github.com/open-thought/reasoning-gym/blob/main/GALLERY.md"
DRAWS_PER_ITEM = 20  # questions repeat, and the split keeps only some of them


def load(name: str, seed: int, size: int, config: Config) -> tuple[Iterator[Item], str]:
    """Items of the dataset `name` and the reward `auto` means; "arithmetic" is chain_sum with two one-digit terms and a
    short prompt, graded as a number.
    """
    if find_spec("reasoning_gym") is None:
        raise InputError(f"task '{name}' needs reasoning-gym: pip install reasoning-gym (or give a .jsonl file)")
    if name == "arithmetic":
        data = _dataset("chain_sum", seed, size, {**ARITHMETIC, **config})
        return (_short(e) for e in data if e["metadata"]["expression"] != EXAMPLE[0]), "numeric"
    data = _dataset(name, seed, size, config)
    own = f"{GYM}{name}:{json.dumps(dict(config))}"
    return (Item(user(entry["question"]), str(entry["answer"]), entry) for entry in data), own


def _short(entry: Mapping[str, Any]) -> Item:
    """The bare expression after one worked example, which asks for a short answer better than words do.

    SmolLM2-135M answers in about five tokens and is right in about 0.4 of the cases at temperature 1: most groups hold
    both right and wrong answers. With "Answer with only the number." instead, most answers are cut-off sentences.
    """
    messages = (
        {"role": "system", "content": "Calculate."},
        {"role": "user", "content": EXAMPLE[0]},
        {"role": "assistant", "content": EXAMPLE[1]},
        {"role": "user", "content": entry["metadata"]["expression"]},
    )
    return Item(messages, str(entry["answer"]), entry)


def _unknown_task(name: str, datasets: Iterable[str]) -> str:
    """One sentence with near names, without the hundred others."""
    own = ["arithmetic", "copy", *TOY_TASKS, *sorted(TASKS)]
    near = [f"'{other}'" for other in get_close_matches(name, [*own, *datasets], n=3, cutoff=0.5)]
    hint = f" did you mean {' or '.join(near)}?" if near else ""
    return (
        f"unknown task '{name}';{hint} Valid: {', '.join(own)}, a .jsonl, .json or .parquet file, hf:NAME, or a "
        f"dataset of reasoning-gym, listed at {GALLERY}"
    )


def _dataset(name: str, seed: int, size: int, config: Config) -> Any:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS:
        raise InputError(_unknown_task(name, DATASETS))
    options = {f.name for f in fields(DATASETS[name][1])} - {"seed", "size"}
    for key in config:
        if key not in options:
            raise FieldError(unknown(f"option of task {name}", key, options))
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=DRAWS_PER_ITEM * size, **config)
    except Exception as error:  # its configs check themselves with assertions and errors of many kinds
        raise InputError(f"task '{name}' refuses the options {dict(config)}: {error}; mend them") from error
