"""Verifiable tasks: prompts, a reward in {0, 1}, and a train and a held-out side that never share a question."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from etr.errors import InputError
from etr.llm import jsonl, procedural
from etr.llm.grading import final_answer, same_answer
from etr.llm.items import Config, Item, user
from etr.llm.toy_tasks import TOY_TASKS, score_exactly, toy_items

Split = Literal["train", "held-out", "all"]
HELD_OUT_SHARE = 5  # one question in five


@dataclass(frozen=True)
class Task:
    """A finite list of items with a reward function."""

    name: str
    items: tuple[Item, ...]
    scorer: Callable[[Item, str], float]

    def reward(self, item: Item, completion: str) -> float:
        """1.0 for a right completion, 0.0 for any other; partial credit of a scorer counts as wrong."""
        return float(self.scorer(item, completion) == 1.0)

    def sample(self, step: int, count: int, seed: int) -> list[Item]:
        """The items of one step, a pure function of (seed, step): a resumed run sees what it would have seen.

        Items come without replacement inside an epoch; each epoch is its own permutation.
        """
        size = len(self.items)
        start = step * count
        order = {epoch: _permutation(size, seed, epoch) for epoch in range(start // size, (start + count) // size + 1)}
        return [self.items[order[i // size][i % size]] for i in range(start, start + count)]


def load_task(
    name: str, *, size: int = 1000, seed: int = 0, split: Split = "all", config: Config | None = None
) -> Task:
    """Load a task of at most `size` distinct items.

    `name` is "arithmetic" (one-digit sums and differences), "copy-reverse" or "mod-arithmetic" (for the toy Llama),
    "copy" (for the tiny model), a reasoning-gym dataset, whose options `config` sets, or the path of a .jsonl file with
    the keys prompt and answer. `split` is decided by a hash of the question alone, so a question held out once is held
    out for every seed and size. Raises `InputError`.
    """
    if size < 1:
        raise InputError(f"task size must be at least 1, not {size}; give the number of distinct items to load")
    pool: Iterable[Item]
    scorer: Callable[[Item, str], float] = _score_text
    if name.endswith(".jsonl"):
        _refuse_options(name, config)
        pool = jsonl.read_items(Path(name))
    elif name == "copy":
        _refuse_options(name, config)
        pool, scorer = _copy_items(seed), _score_start
    elif name in TOY_TASKS:
        _refuse_options(name, config)
        pool, scorer = toy_items(name, seed), score_exactly
    else:
        pool, scorer = procedural.load(name, seed, size, config or {})
    items = tuple(islice((item for item in _distinct(pool) if split in ("all", _side(item))), size))
    if not items:
        raise InputError(f"task '{name}' has no {split} items; give it more distinct questions")
    return Task(name, items, scorer)


def encode(tokenizer: Any, item: Item) -> list[int]:
    """Token ids of the prompt: through the chat template where the tokenizer has one, as plain text otherwise."""
    if tokenizer.chat_template is None:
        return list(tokenizer(item.question)["input_ids"])
    messages = [dict(message) for message in item.messages]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def _score_text(item: Item, completion: str) -> float:
    return float(same_answer(final_answer(completion, item.answer), item.answer))


def _score_start(item: Item, completion: str) -> float:
    """For a model that cannot yet stop: only the first character counts."""
    return float(completion.startswith(item.answer))


def _copy_items(seed: int) -> Iterable[Item]:
    """Two digits, of which the first is the answer: the easiest task that still needs the prompt to be read."""
    pairs = [f"{a}{b}" for a in range(10) for b in range(10)]
    return [Item(user(f"{pair}="), pair[0]) for pair in random.Random(seed).sample(pairs, len(pairs))]


def _refuse_options(name: str, config: Config | None) -> None:
    if config:
        raise InputError(f"task '{name}' takes no options, got {', '.join(sorted(config))}; remove them")


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
