"""Files, hub datasets and the layouts of benchmarks; each thing that may be wrong with them is named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from etr.errors import InputError
from etr.llm.data import hub
from etr.llm.data.overlap import overlap, warning
from etr.llm.items import Item, user
from etr.llm.tasks import encode, load_task

DATA = Path(os.environ.get("ETR_DATA", Path(__file__).parent.parent.parent / "shared" / "data"))
ROWS = [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(6)]


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(path: Path, *rows: Any) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return str(path)


def test_all_formats_hold_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(json.dumps(ROWS))
    names = [jsonl(tmp_path / "t.jsonl", *ROWS), str(tmp_path / "t.json"), parquet(tmp_path / "t.parquet", *ROWS)]
    tasks = [load_task(name) for name in names]
    assert tasks[0].items == tasks[1].items == tasks[2].items
    assert len(tasks[0].items) == 6 and tasks[0].scorer == "numeric"


def test_a_file_is_loaded_whole(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "a"} for i in range(1500)]
    assert len(load_task(jsonl(tmp_path / "t.jsonl", *rows)).items) == 1500


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [{"prompt": "not this", "ask": f"q{i}", "deep": {"truth": f"a{i}"}} for i in range(3)]
    options = {"prompt": "ask", "answer": "deep.truth", "instruction": "Be brief."}
    for name in (jsonl(tmp_path / "t.jsonl", *rows), parquet(tmp_path / "t.parquet", *rows)):
        items = load_task(name, config=options).items
        assert [(i.prompt, i.question, i.answer) for i in items] == [
            (f"q{n}\n\nBe brief.", f"q{n}", f"a{n}") for n in range(3)
        ]


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "scorer"),
    [
        ({"question": "Q?", "answer": "2+2=<<2+2=4>>4\n#### 1,004"}, "Q?", "1004", "numeric"),
        ({"problem": "Q?", "solution": r"\boxed{3} or", "answer": r"\frac{1}{2}"}, "Q?", r"\frac{1}{2}", "math"),
        ({"problem": "Q?", "solution": r"First \boxed{1}, so \boxed{\frac{1}{2}}."}, "Q?", r"\frac{1}{2}", "math"),
        ({"id": 1, "problem": "Q?", "answer": 27.0, "url": "u", "question": "Q?"}, "Q?", "27", "numeric"),
        ({"ID": "1", "Problem": "Q?", "Answer": 204}, "Q?", "204", "numeric"),
        (
            {"prompt": [{"role": "user", "content": "Q?"}], "reward_model": {"ground_truth": "34"}},
            "Q?",
            "34",
            "numeric",
        ),
        ({"question": "Capital of France?", "answer": "Paris"}, "Capital of France?", "Paris", "text"),
    ],
)
def test_layouts(tmp_path: Path, row: dict[str, Any], prompt: str, answer: str, scorer: str) -> None:
    task = load_task(jsonl(tmp_path / "t.jsonl", row))
    (item,) = task.items
    assert (item.question, item.answer, task.scorer) == (prompt, answer, scorer)
    asks = "prompt" not in row
    assert item.prompt == (f"{prompt}\n\nPut the final answer within \\boxed{{}}." if asks else prompt)


def test_the_instruction_reaches_a_model_without_a_chat_template(tmp_path: Path) -> None:
    class Plain:
        chat_template = None

        def __call__(self, text: str) -> dict[str, list[int]]:
            return {"input_ids": [len(text)]}

    item = load_task(jsonl(tmp_path / "t.jsonl", {"problem": "Q?", "answer": "1"})).items[0]
    assert encode(Plain(), item) == [len(item.prompt)]


@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="no benchmark files; set ETR_DATA to the folder with them")
@pytest.mark.parametrize(
    ("name", "size", "scorer", "first"),
    [
        ("gsm8k/train.jsonl", 7473, "numeric", "72"), ("gsm8k/test.jsonl", 1319, "numeric", "18"),
        ("math500/test.jsonl", 500, "math", r"\left( 3, \frac{\pi}{2} \right)"),
        ("math500/normalized.jsonl", 500, "math", r"\left( 3, \frac{\pi}{2} \right)"),
        ("aime24/test.jsonl", 30, "numeric", "204"), ("amc23/test.jsonl", 40, "numeric", "27"),
    ],
)  # fmt: skip
def test_real_benchmark_files(name: str, size: int, scorer: str, first: str) -> None:
    task = load_task(str(DATA / name))
    assert (len(task.items), task.scorer, task.items[0].answer) == (size, scorer, first)


@pytest.mark.skipif(not (DATA / "gsm8k").exists(), reason="no benchmark files; set ETR_DATA to the folder with them")
def test_every_worked_solution_of_a_benchmark_is_graded_right() -> None:
    for name, column in (("gsm8k/test.jsonl", "answer"), ("math500/test.jsonl", "solution")):
        task = load_task(str(DATA / name))
        solutions = [json.loads(line)[column] for line in (DATA / name).read_text().splitlines()]
        assert all(task.reward(item, text) == 1.0 for item, text in zip(task.items, solutions, strict=True))


@pytest.mark.skipif(not (DATA / "math_train").exists(), reason="no benchmark files; set ETR_DATA")
def test_rows_without_an_answer_are_left_out_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="4 rows have no answer and are left out, the first is .* item 887"):
        task = load_task(str(DATA / "math_train" / "math.json"))
    assert not overlap(task.items, load_task(str(DATA / "math500" / "test.jsonl")).items)


def test_questions_seen_in_training_are_found_whatever_their_dress() -> None:
    training = [Item(user("What is  $2+3$?"), "5"), Item(user("q"), "1")]
    benchmark = [
        Item(user("what is 2 + 3 ?\n\nBox it."), "5", asked="what is 2 + 3 ?"),
        Item(user("What is 2+4?"), "6"),
    ]
    common = overlap(training, benchmark)
    assert common == benchmark[:1]
    assert warning("train.jsonl", "bench", common, 2).startswith(
        "1 of the 2 questions of bench are also in train.jsonl"
    )


@pytest.mark.parametrize(
    ("rows", "config", "message"),
    [
        ([{"a": 1}], {}, r"line 1 lacks the key 'prompt'; it has a; each line needs 'prompt' and 'answer', or name"),
        ([{"prompt": "x", "b": 1}], {}, r"line 1 lacks the key 'answer'; it has prompt, b; each line"),
        ([{"prompt": "x", "answer": "1"}], {"prompt": "ask"}, r"line 1 lacks the key 'ask'; it has prompt, answer"),
        ([{"prompt": "x", "answer": None}], {}, r"no row of '.*' has an answer in 'answer'; name another column"),
        ([{"prompt": "x", "answer": "1"}], {"columns": "a"}, "takes only the options prompt, answer, .* got columns"),
    ],
)
def test_wrong_columns(tmp_path: Path, rows: list[Any], config: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_task(jsonl(tmp_path / "t.jsonl", *rows), config=config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", b'{"prompt": 1}', "is not a JSON list; write"),
        ("t.json", b"[1]", "item 1 is not a JSON object"),
        ("t.json", b"[", "is not JSON .*; write a list of objects"),
        ("t.json", b"[]", "has no items"),
        ("t.json", b"[" * 100_000, "is nested too deeply"),
        ("t.parquet", b"PAR1 nonsense", "cannot read task file .*; give the path of a .parquet file"),
        ("t.parquet", None, "cannot read task file .*; give the path of a .parquet file"),
        ("t.jsonl", b"", "has no items"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_task(str(tmp_path / name))


def test_folders_of_the_datasets_library(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": data, "test": data.select([0])}).save_to_disk(tmp_path / "two")
    (tmp_path / "files").mkdir()
    parquet(tmp_path / "files" / "test.parquet", *ROWS)
    assert len(load_task(f"hf:{tmp_path}/one").items) == 6
    assert len(load_task(f"hf:{tmp_path}/two").items) == 6
    assert [item.answer for item in load_task(f"hf:{tmp_path}/two@test").items] == ["1"]
    assert len(load_task(f"hf:{tmp_path}/files").items) == 6  # the only split
    with pytest.raises(InputError, match="unknown split 'tset'; did you mean 'test'"):
        load_task(f"hf:{tmp_path}/two@tset")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def unreachable(name: str, config: str | None) -> None:
        assert (name, config) == ("openai/gsm8k", "main")
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = r"cannot load the dataset 'openai/gsm8k' \(ConnectionError: no route\); check its name and the connection"
    with pytest.raises(InputError, match=message):
        load_task("hf:openai/gsm8k/main@test")


def test_hub_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.parse_source("hf:a/b") == ("a/b", None, None)
    assert hub.parse_source("hf:a/b/c@d") == ("a/b", "c", "d")
    for wrong in ("hf:", "hf:a/b@", "hf:a/b/c/d", "hf:./none", "hf:a//b"):
        with pytest.raises(InputError, match=r"write hf:NAME\[/config\]\[@split\]"):
            hub.parse_source(wrong)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the library datasets: pip install datasets"):
        load_task("hf:a/b")
