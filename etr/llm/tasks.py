"""Verifiable tasks: prompts, the reward that fits them, and a train and a held-out side that never share a question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

from etr.errors import InputError
from etr.llm import procedural
from etr.llm.data.layouts import read_items, scorer_of
from etr.llm.data.rows import is_source, read_rows
from etr.llm.extensions import plugin_items
from etr.llm.items import Config, Item, user
from etr.llm.rewards import combine, scores
from etr.llm.toy_tasks import TOY_TASKS, toy_items

Split = Literal["train", "held-out", "all"]
HELD_OUT_SHARE = 5  # one question in five
GENERATED = 1000  # items of a task that can make any number of them
COLUMNS = ("prompt", "answer", "instruction")  # the options of a file


@dataclass(frozen=True)
class Task:
    """A finite list of items, the reward that `auto` means for them, and how its components are combined."""

    name: str
    items: tuple[Item, ...]
    scorer: str  # a name of `etr.llm.rewards.scores`
    grading: Mapping[str, object] = field(default_factory=dict)  # the options reward_weights and reward_bounds

    def reward(self, item: Item, completion: str) -> float:
        """The task's own reward of one completion, here and now; a `Grader` has a limit on time."""
        return float(scores.find(self.scorer)(item, completion))

    def sample(self, step: int, count: int, seed: int) -> list[Item]:
        """The items of one step, a pure function of (seed, step): a resumed run sees what it would have seen.

        Items come without replacement inside an epoch; each epoch is its own permutation.
        """
        size = len(self.items)
        start = step * count
        order = {epoch: _permutation(size, seed, epoch) for epoch in range(start // size, (start + count) // size + 1)}
        return [self.items[order[i // size][i % size]] for i in range(start, start + count)]


def load_task(
    name: str, *, size: int | None = None, seed: int = 0, split: Split = "all", config: Config | None = None
) -> Task:
    """Load a task of at most `size` distinct items: all of a file, 1000 of a task that makes any number.

    `name` is "arithmetic" (one-digit sums and differences), "copy-reverse" or "mod-arithmetic" (for the toy Llama),
    "copy" (for the tiny model), a reasoning-gym dataset or a plugin's task, whose options `config` sets, the path of a
    .jsonl, .json or .parquet file, or hf:NAME[/config][@split]; for these `config` may name the columns as prompt=… and
    answer=…, and an instruction=… to follow each question. `split` is decided by a hash of the question alone, so a
    question held out once is held out for every seed and size. Raises `InputError`.
    """
    if size is not None and size < 1:
        raise InputError(f"task size must be at least 1, not {size}; give the number of distinct items to load")
    options = dict(config or {})
    grading = {key: options.pop(key) for key in combine.OPTIONS if key in options}
    pool, scorer = _pool(name, seed, GENERATED if size is None else size, options)
    items = tuple(islice((item for item in _distinct(pool) if split in ("all", _side(item))), size or _most(name)))
    if not items:
        raise InputError(f"task '{name}' has no {split} items; give it more distinct questions")
    return Task(name, items, scorer, grading)


def _pool(name: str, seed: int, size: int, options: Config) -> tuple[Iterable[Item], str]:
    """All items to choose from, repetitions included, and the reward that fits them."""
    if is_source(name):
        _refuse_options(name, options, COLUMNS)
        items = read_items(name, read_rows(name), options)
        return items, scorer_of(items)
    if name == "copy" or name in TOY_TASKS:
        _refuse_options(name, options)
        return (_copy_items(seed), "start") if name == "copy" else (toy_items(name, seed), "exact")
    return plugin_items(name, seed, size, options) or procedural.load(name, seed, size, options)


def _most(name: str) -> int | None:
    return None if is_source(name) else GENERATED


def encode(tokenizer: Any, item: Item) -> list[int]:
    """Token ids of the prompt: through the chat template where the tokenizer has one, as plain text otherwise."""
    if tokenizer.chat_template is None:
        return list(tokenizer(item.text)["input_ids"])
    messages = [dict(message) for message in item.messages]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _copy_items(seed: int) -> Iterable[Item]:
    """Two digits, of which the first is the answer: the easiest task that still needs the prompt to be read."""
    pairs = [f"{a}{b}" for a in range(10) for b in range(10)]
    return [Item(user(f"{pair}="), pair[0]) for pair in random.Random(seed).sample(pairs, len(pairs))]


def _refuse_options(name: str, options: Config, valid: tuple[str, ...] = ()) -> None:
    wrong = sorted(set(options) - set(valid))
    if wrong:
        takes = f"takes only the options {', '.join((*valid, *combine.OPTIONS))}" if valid else "takes no options"
        raise InputError(f"task '{name}' {takes}, got {', '.join(wrong)}; remove them")


def _distinct(items: Iterable[Item]) -> Iterator[Item]:
    seen: set[str] = set()
    for item in items:
        if item.question not in seen:
            seen.add(item.question)
            yield item


def _side(item: Item) -> Split:
    digest = hashlib.sha256(item.question.encode()).digest()
    return "held-out" if int.from_bytes(digest[:8], "big") % HELD_OUT_SHARE == 0 else "train"


def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    return random.Random(f"{seed}/{epoch}").sample(range(size), size)
