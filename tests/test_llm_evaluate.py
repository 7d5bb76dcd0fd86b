"""pass@k against brute force, reproducible, with every answer on record."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.llm import evaluate as module
from etr.llm.evaluate import Answers, EvalResult, evaluate, summarize
from etr.llm.items import Item, user
from etr.llm.majority import majority, votes
from etr.llm.models import tiny_model
from etr.llm.rewards import Grader
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
        language_model, task or load_task("copy", split="held-out"), TransformersEngine(language_model, 4, 1.0),
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

    def generate(self, prompts: list[list[int]], group_size: int, seeds: Sequence[int]) -> Rollout:
        self.seeds += seeds
        rows = torch.tensor([[*prompt, prompt[0]] for prompt in prompts for _ in range(group_size)])
        return pack(rows, torch.ones_like(rows[:, :-1]), eos_ids=(1,))


def test_answers_stay_with_their_items_and_each_has_a_seed_of_its_own() -> None:
    engine = Echo()
    result = evaluate(tiny_model(), load_task("copy"), engine, items=40, samples=8, ks=(1,))
    assert result.pass_at[1] == (1.0, 1.0, 1.0)
    assert result.truncated == 1.0
    assert len(engine.seeds) == len(set(engine.seeds)) == 40 * 8


def test_a_seed_fixes_everything_and_batches_do_not_change_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run()
    assert run()[0] == first
    assert run(seed=1)[0] != first
    monkeypatch.setattr(module, "ROWS_PER_BATCH", 1)
    one_by_one, calls = run()
    assert len(calls) == 12
    assert one_by_one == first  # each answer has its own seed, whatever batch it is in


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


def test_majority_is_the_mean_over_all_subsets_with_ties_split() -> None:
    answers = ["5", "5", "6", "7", "7", "", "5.0"]  # the right answer is 5; "" does not vote
    right = [text.startswith("5") for text in answers]
    good, wrong = votes(answers, right)
    assert (good, sorted(wrong)) == (3, [1, 2])
    for k in range(1, len(answers) + 1):
        scores = []
        for subset in combinations(zip(answers, right, strict=True), k):
            counts = Counter("right" if ok else text for text, ok in subset if text)
            top = [name for name, count in counts.items() if count == max(counts.values())]
            scores.append(top.count("right") / len(top) if top else 0.0)
        assert majority(good, wrong, 1, k) == pytest.approx(sum(scores) / len(scores), abs=1e-12), k


def test_measures_of_partial_rewards_and_of_majorities() -> None:
    rows = graded([1.0, 1.0, 0.0, 0.5], [0.0, 0.5, 0.5, 0.0])
    rows[0].texts[:], rows[1].texts[:] = ["5", "5", "6", "6"], ["1", "2", "2", "3"]
    result = summarize(rows, ks=(1, 4))
    assert result.average.estimate == pytest.approx((2.5 / 4 + 1 / 4) / 2)
    assert result.pass_at[1].estimate == pytest.approx((2 / 4 + 0) / 2)  # only the whole reward is a right answer
    assert result.majority_at[4].estimate == pytest.approx((0.5 + 0) / 2)  # two votes each: a tie, split evenly
    assert result.majority_at[1].estimate == pytest.approx(result.pass_at[1].estimate)


def test_a_reward_of_ones_own_grades_the_evaluation(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(prompt, completion, answer):\n    return float(prompt.endswith('='))\n")
    task = load_task("copy", split="held-out")
    with Grader(task, f"{tmp_path}/mine.py:f", workers=1) as grader:
        result = evaluate(
            tiny_model(), task, TransformersEngine(tiny_model(), 4, 1.0), items=4, samples=2, ks=(1,), grader=grader
        )
    assert result.pass_at[1].estimate == 1.0


def test_the_command_prints_every_measure_and_warns_of_seen_questions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from etr.cli import main

    monkeypatch.setenv("COLUMNS", "160")
    file = tmp_path / "bench.jsonl"
    file.write_text("".join(json.dumps({"problem": f"What is {i}?", "answer": i}) + "\n" for i in range(6)))
    words = ["eval", "--model", "tiny-random", "--engine", "transformers", "--samples", "4", "--k", "1", "4"]
    words += ["--max-new-tokens", "3", "--task", str(file), "--out", str(tmp_path / "rows.jsonl")]
    seen = tmp_path / "seen.jsonl"
    seen.write_bytes(file.read_bytes())
    assert main([*words, "--trained-on", str(seen)]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("pass@1", "pass@4", "avg@4", "maj@4", "6 questions, 4 samples each"))
    assert "6 of the 6 questions" in out  # all of a benchmark is used, not a fifth
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 6
    assert main(["eval", "--task", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read task file" in capsys.readouterr().err


def test_seen_questions_are_looked_up_with_the_seed_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from etr.cli import evaluate as command
    from etr.llm import tasks
    from etr.runs import RunFolder

    settings = {"task": "arithmetic", "task_options": {}, "seed": 7}
    with RunFolder.create(tmp_path / "run", {"kind": "llm", "settings": settings}):
        pass
    asked: list[tuple[str, int]] = []

    def load(name: str, *, seed: int, **options: object) -> Task:
        asked.append((name, seed))
        return Task(name, (Item(user("2 + 2"), "4"),), "exact")

    monkeypatch.setattr(tasks, "load_task", load)
    command._report_overlap(load("copy", seed=0), str(tmp_path / "run/checkpoints/step-2"), None)
    assert asked[1:] == [("arithmetic", 7)]
    assert "1 of the 1 questions of copy" in capsys.readouterr().out
