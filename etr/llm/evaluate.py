"""pass@k on held-out items, with intervals over items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from etr.errors import InputError
from etr.files import atomic_write, to_json
from etr.llm.items import Item
from etr.llm.models import LanguageModel
from etr.llm.rollout import RolloutEngine, texts
from etr.llm.tasks import Task, encode
from etr.stats import Interval, bootstrap, pass_at_k

ROWS_PER_BATCH = 64  # completions sampled at once


@dataclass(frozen=True)
class Answers:
    """All sampled answers to one item: texts, their rewards, and whether each ended by itself."""

    prompt: str
    answer: str
    texts: list[str]
    rewards: list[float]
    finished: list[bool]


@dataclass(frozen=True)
class EvalResult:
    """pass@k of a model on a task, and every answer behind it.

    `pass_at[k]` is the mean over items of the unbiased estimate, with a 95 % bootstrap interval over items; pass@1 is
    the share of right answers. `truncated` is the share of answers that the length limit cut off.
    """

    pass_at: dict[int, Interval]
    truncated: float
    rows: list[Answers]

    def write(self, path: Path) -> None:
        """One JSON line per item, in one step. Raises InputError when the file cannot be written."""
        atomic_write(path, "".join(to_json(vars(row)) + "\n" for row in self.rows))


def evaluate(
    language_model: LanguageModel,
    task: Task,
    engine: RolloutEngine,
    *,
    items: int,
    samples: int,
    ks: Sequence[int] = (1, 4, 8),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Sample `samples` answers to each of `items` items of the task (to all, if it has fewer).

    Items, answers and intervals are fixed by `seed`. `progress(done, total)` hears of every batch of items. Raises
    InputError when a k exceeds `samples`, or fewer than 2 items are left to resample.
    """
    if not ks or not 1 <= min(ks) <= max(ks) <= samples:
        raise InputError(f"pass@k needs 1 <= k <= samples, got k {list(ks)} and {samples} samples; change one of them")
    count = min(items, len(task.items))
    if count < 2:
        raise InputError(f"an interval over items needs at least 2 of them, got {count}; evaluate on more")
    chosen = task.sample(0, count, seed)
    size = max(1, ROWS_PER_BATCH // samples)
    rows: list[Answers] = []
    for start in range(0, count, size):
        rows += _answers(language_model, task, engine, chosen[start : start + size], samples, seed + start)
        if progress is not None:
            progress(len(rows), count)
    return summarize(rows, ks, seed)


def summarize(rows: list[Answers], ks: Sequence[int], seed: int = 0) -> EvalResult:
    """pass@k with intervals from graded answers."""
    sampled = torch.tensor([len(row.rewards) for row in rows])
    right = torch.tensor([sum(row.rewards) for row in rows])
    generator = torch.Generator().manual_seed(seed)
    pass_at = {k: bootstrap(pass_at_k(sampled, right, k), _mean, generator) for k in ks}
    finished = [done for row in rows for done in row.finished]
    return EvalResult(pass_at, 1 - sum(finished) / len(finished), rows)


def _answers(
    language_model: LanguageModel, task: Task, engine: RolloutEngine, items: list[Item], samples: int, seed: int
) -> list[Answers]:
    rollout = engine.generate([encode(language_model.tokenizer, item) for item in items], samples, seed)
    sampled, finished = texts(language_model, rollout), rollout.finished.tolist()
    rows = []
    for i, item in enumerate(items):
        part = slice(i * samples, (i + 1) * samples)
        rewards = [task.reward(item, text) for text in sampled[part]]
        rows.append(Answers(item.prompt, item.answer, sampled[part], rewards, finished[part]))
    return rows


def _mean(values: torch.Tensor) -> torch.Tensor:
    return values.mean(-1)
