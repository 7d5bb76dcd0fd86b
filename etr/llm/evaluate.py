"""pass@k, avg@k and maj@k on held-out items or a benchmark, with intervals over items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from etr.errors import InputError
from etr.files import atomic_write, to_json
from etr.llm.distributed import ALONE, World
from etr.llm.items import Item
from etr.llm.majority import majority, votes
from etr.llm.models import LanguageModel
from etr.llm.rewards import Grader
from etr.llm.rewards.answers import extract
from etr.llm.rollout import RolloutEngine, request_seeds, texts
from etr.llm.tasks import Task, encode
from etr.stats import Interval, bootstrap, pass_at_k

ROWS_PER_BATCH = 64  # completions sampled at once


@dataclass(frozen=True)
class Answers:
    """All sampled answers to one item: texts, rewards, whether each ended by itself, and what it says the answer is."""

    prompt: str
    answer: str
    texts: list[str]
    rewards: list[float]
    finished: list[bool]
    extracted: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class EvalResult:
    """Measures of a model on a task, and every answer behind them; each with a 95 % bootstrap interval over items.

    `pass_at[k]` is the mean over items of the unbiased estimate; pass@1 is the share of right answers, those with the
    greatest reward. `majority_at[k]` is maj@k, exact over all k-subsets of the samples, ties split evenly. `average` is
    the mean reward, avg@n of the n samples. `truncated` is the share of answers that the length limit cut off.
    """

    pass_at: dict[int, Interval]
    majority_at: dict[int, Interval]
    average: Interval
    truncated: float
    rows: list[Answers]
    timeouts: int
    errors: int

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
    grader: Grader | None = None,
    world: World = ALONE,
) -> EvalResult:
    """Sample `samples` answers to each of `items` items of the task (to all, if it has fewer).

    Items, answers and intervals are fixed by `seed`. `progress(done, total)` hears of every batch of items of this
    process. Answers are graded by `grader`, or by the task's own reward. Of several processes (`world`) each asks its
    share of the items, and all have the result. Raises InputError when a k exceeds `samples`, or fewer than 2 items are
    left to resample; EngineError in every process when the engine of one fails.
    """
    chosen = _chosen(task, items, samples, ks, seed)
    count, numbers = len(chosen), {item.question: i for i, item in enumerate(task.items)}
    own = chosen[world.part(count)]
    size = max(1, ROWS_PER_BATCH // samples)
    with ExitStack() as stack:
        judge = stack.enter_context(Grader(task)) if grader is None else grader

        def answered() -> list[_Part]:
            found = []
            # As many batches in every process: where weights are sharded, sampling gathers them from all.
            for start in range(0, -(-count // world.size), size):
                batch = own[start : start + size] or chosen[:1]
                seeds = request_seeds(seed, 0, [numbers[item.question] for item in batch], samples)
                part = _answers(language_model, engine, judge, batch, samples, seeds)
                found += [part] if own[start : start + size] else []
                if progress is not None:
                    progress(min(start + size, len(own)), len(own))
            return found

        parts = [part for found in world.together(answered) for part in found]
    rows = [row for part in parts for row in part.rows]
    failures = sum(part.timeouts for part in parts), sum(part.errors for part in parts)
    return summarize(rows, ks, seed, best=judge.bounds[1], failures=failures)


def _chosen(task: Task, items: int, samples: int, ks: Sequence[int], seed: int) -> list[Item]:
    if not ks or not 1 <= min(ks) <= max(ks) <= samples:
        raise InputError(f"pass@k needs 1 <= k <= samples, got k {list(ks)} and {samples} samples; change one of them")
    count = min(items, len(task.items))
    if count < 2:
        raise InputError(f"an interval over items needs at least 2 of them, got {count}; evaluate on more")
    return task.sample(0, count, seed)


def summarize(
    rows: list[Answers], ks: Sequence[int], seed: int = 0, best: float = 1.0, failures: tuple[int, int] = (0, 0)
) -> EvalResult:
    """Measures with intervals from graded answers; `best` is the reward of a right one."""
    right = [[reward == best for reward in row.rewards] for row in rows]
    sampled = torch.tensor([len(row.rewards) for row in rows])
    hits = torch.tensor([sum(row) for row in right])
    generator = torch.Generator().manual_seed(seed)

    def interval(values: torch.Tensor) -> Interval:
        return bootstrap(values, lambda drawn: drawn.mean(-1), generator)

    counted = [votes(row.texts, good) for row, good in zip(rows, right, strict=True)]
    finished = [done for row in rows for done in row.finished]
    return EvalResult(
        pass_at={k: interval(pass_at_k(sampled, hits, k)) for k in ks},
        majority_at={k: interval(_majorities(counted, sampled.tolist(), k)) for k in ks},
        average=interval(torch.tensor([sum(row.rewards) / len(row.rewards) for row in rows], dtype=torch.float64)),
        truncated=1 - sum(finished) / len(finished),
        rows=rows,
        timeouts=failures[0],
        errors=failures[1],
    )


def _majorities(counted: list[tuple[int, list[int]]], sampled: list[int], k: int) -> torch.Tensor:
    values = [
        majority(good, wrong, n - good - sum(wrong), k) for (good, wrong), n in zip(counted, sampled, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float64)


class _Part(NamedTuple):
    rows: list[Answers]
    timeouts: int
    errors: int


def _answers(
    language_model: LanguageModel,
    engine: RolloutEngine,
    grader: Grader,
    items: list[Item],
    samples: int,
    seeds: Sequence[int],
) -> _Part:
    """Graded answers to some items, and how many could not be graded in time or at all."""
    rollout = engine.generate([encode(language_model.tokenizer, item) for item in items], samples, seeds)
    sampled, finished = texts(language_model, rollout), rollout.finished.tolist()
    grades = grader.grade([item for item in items for _ in range(samples)], sampled)
    rows = []
    for i, item in enumerate(items):
        part = slice(i * samples, (i + 1) * samples)
        extracted = [extract(text) for text in sampled[part]]
        rows.append(Answers(item.prompt, item.answer, sampled[part], grades.rewards[part], finished[part], extracted))
    return _Part(rows, grades.timeouts, grades.errors)
