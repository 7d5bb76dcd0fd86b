"""pass@k against brute force, reproducible, with every answer on record."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.llm import evaluate as module
from etr.llm.evaluate import Answers, EvalResult, evaluate, summarize
from etr.llm.models import tiny_model
from etr.llm.rollout import Rollout, TransformersEngine, pack
from etr.llm.tasks import Task, load_task

pytest.importorskip("transformers")


def graded(*rewards: list[float]) -> list[Answers]:
    return [Answers(f"q{i}", "1", ["1"] * len(row), row, [bool(r) for r in row]) for i, row in enumerate(rewards)]


def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_answer() -> None:
    rows = graded([1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0])
    result = summarize(rows, ks=(1, 2, 4, 5))
    for k, interval in result.pass_at.items():
        by_item = [[max(subset) for subset in combinations(row.rewards, k)] for row in rows]
        expected = sum(sum(hits) / len(hits) for hits in by_item) / len(rows)
        assert interval.estimate == pytest.approx(expected)
        assert interval.low <= interval.estimate <= interval.high
    assert result.truncated == pytest.approx(12 / 20)


def run(task: Task | None = None, seed: int = 0, **options: int) -> tuple[EvalResult, list[tuple[int, int]]]:
    language_model, calls = tiny_model(), []
    settings = {"items": 12, "samples": 8, **options}
    result = evaluate(
        language_model, task or load_task("copy", split="held-out"), TransformersEngine(language_model, 4),
        ks=(1, 4, 8), seed=seed, progress=lambda done, total: calls.append((done, total)), **settings,
    )  # fmt: skip
    return result, calls


def test_every_answer_is_graded_against_its_own_item() -> None:
    task = load_task("copy", split="held-out")
    result, calls = run(task)
    by_prompt = {item.prompt: item for item in task.items}
    assert calls == [(8, 12), (12, 12)]
    assert len({row.prompt for row in result.rows}) == 12
    for row in result.rows:
        assert len(row.texts) == len(row.rewards) == len(row.finished) == 8
        assert row.rewards == [task.reward(by_prompt[row.prompt], text) for text in row.texts]
        assert all(len(text) < 4 or not done for text, done in zip(row.texts, row.finished, strict=True))
    right = sum(sum(row.rewards) for row in result.rows) / (12 * 8)
    assert 0 < right < 1  # otherwise a mix-up of items would not show
    assert result.pass_at[1].estimate == pytest.approx(right)


class Echo:
    """An engine that answers with the first token of the prompt, which is right in the copy task."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def generate(self, prompts: list[list[int]], group_size: int, seed: int) -> Rollout:
        self.seeds.append(seed)
        rows = torch.tensor([[*prompt, prompt[0]] for prompt in prompts for _ in range(group_size)])
        return pack(rows, torch.ones_like(rows[:, :-1]), eos_ids=(1,))

    def sync(self, model: object) -> None: ...


def test_answers_stay_with_their_items_and_batches_have_seeds_of_their_own() -> None:
    engine = Echo()
    result = evaluate(tiny_model(), load_task("copy"), engine, items=40, samples=8, ks=(1,))
    assert result.pass_at[1] == (1.0, 1.0, 1.0)
    assert result.truncated == 1.0
    assert len(engine.seeds) == len(set(engine.seeds)) == 5


def test_a_seed_fixes_everything_and_batches_do_not_change_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run()
    assert run()[0] == first
    assert run(seed=1)[0] != first
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 1)
    one_by_one, calls = run()
    assert len(calls) == 12
    assert [row.prompt for row in one_by_one.rows] == [row.prompt for row in first.rows]


def test_no_more_items_than_there_are() -> None:
    task = load_task("copy", split="held-out")
    assert len(run(task, items=1000)[0].rows) == len(task.items)


def test_rows_are_written_as_json_lines(tmp_path: Path) -> None:
    result, _ = run()
    result.write(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert rows == [vars(row) for row in result.rows]
    with pytest.raises(InputError, match="cannot write"):
        result.write(tmp_path / "no" / "rows.jsonl")


def test_wrong_arguments() -> None:
    with pytest.raises(InputError, match=r"needs 1 <= k <= samples, got k \[1, 4, 8\] and 4 samples"):
        run(samples=4)
    with pytest.raises(InputError, match="needs at least 2 of them, got 1; evaluate on more"):
        run(items=1)
