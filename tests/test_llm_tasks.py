"""Items, splits and rewards; a mistake in a task file is named by file, line and key."""

from __future__ import annotations

import json
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from etr.errors import FieldError, InputError
from etr.llm.items import Item, user
from etr.llm.rewards.plain import final_answer, parse_number, same_answer
from etr.llm.rewards.scores import find
from etr.llm.tasks import Task, encode, load_task

pytest.importorskip("reasoning_gym")


def numbered(size: int) -> Task:
    return Task("numbers", tuple(Item(user(str(i)), str(i)) for i in range(size)), "text")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("12.", 12), (" -4 ", -4), ("1,234", 1234), ("$1,200.50", Fraction(2401, 2)),
        ("0.5", Fraction(1, 2)), ("1/2", Fraction(1, 2)), ("\N{MINUS SIGN}3", -3), ("50%", 50), ("007", 7),
        ("1/0", None), ("twelve", None), ("1 2", None), ("12 apples", None), ("", None), ("1,23", None), ("-", None),
        ("0,111", None),
        ("9" * 5000, None), ("__import__('os')", None), ("1e3", 1000), (".5", Fraction(1, 2)), ("1e9999", None),
    ],
)  # fmt: skip
def test_parse_number(text: str, value: Any) -> None:
    assert parse_number(text) == value


@pytest.mark.parametrize(
    ("completion", "answer", "graded"),
    [
        ("12", "12", "12"), ("7 + 5 = 12.", "12", "12"), ("9-4", "5", "4"), ("= -4", "-4", "-4"), ("=-4", "-4", "-4"),
        ("It costs $1,200 today", "1200", "1,200"), ("I think so", "3", ""), ("", "3", ""), ("x2y", "2", ""),
        (r"so \boxed{3/4} of 100", "0.75", "3/4"), (r"\boxed{12\text{ apples}}", "12", "12"),
        (r"\boxed{12 or 13}", "13", "12 or 13"), ("<think>4</think>5", "5", "5"),
        ("<answer> 5 </answer> or 6", "5", "5"),
        ("1\n#### 42\n", "42", "42"),
        ("<answer>1</answer> <answer>2</answer>", "2", "2"), (" Paris. ", "Paris", "Paris."),
    ],
)  # fmt: skip
def test_final_answer(completion: str, answer: str, graded: str) -> None:
    assert final_answer(completion, answer) == graded


def test_same_answer_compares_numbers_as_numbers_and_words_as_words() -> None:
    assert same_answer("12.0", "12")
    assert same_answer("  the  RED fox.", "The red fox")
    assert not same_answer("12", "twelve")
    assert not same_answer("red", "the red fox")
    assert not same_answer("", "0")


def test_a_step_is_a_function_of_seed_and_step_alone() -> None:
    task = numbered(10)
    assert task.sample(7, 4, seed=1) == task.sample(7, 4, seed=1)
    assert task.sample(7, 4, seed=1) != task.sample(7, 4, seed=2)
    assert task.sample(7, 4, seed=1) != task.sample(8, 4, seed=1)


@pytest.mark.parametrize(("size", "count", "steps"), [(10, 3, 10), (7, 7, 3), (5, 12, 5)])
def test_every_epoch_shows_each_item_once_in_an_order_of_its_own(size: int, count: int, steps: int) -> None:
    task = numbered(size)
    stream = [item.answer for step in range(steps) for item in task.sample(step, count, seed=3)]
    assert len(stream) == count * steps
    epochs = [stream[start : start + size] for start in range(0, len(stream) - size + 1, size)]
    assert all(Counter(epoch) == Counter(map(str, range(size))) for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("name", ["arithmetic", "copy", "gsm_symbolic"])
def test_train_and_held_out_share_no_question_whatever_seed_and_size(name: str) -> None:
    train = load_task(name, split="train", size=60, seed=0)
    held_out = load_task(name, split="held-out", size=500 if name == "arithmetic" else 15, seed=1)
    assert not {i.question for i in train.items} & {i.question for i in held_out.items}
    assert len({i.question for i in train.items}) == len(train.items) == 60
    assert load_task(name, split="train", size=60, seed=0).items == train.items


def test_one_digit_arithmetic_is_split_into_all_its_questions() -> None:
    both = [load_task("arithmetic", split=split) for split in ("train", "held-out")]
    whole = load_task("arithmetic")
    assert len(whole.items) == 199  # 100 sums and 100 differences, less the worked example
    assert {i.question for task in both for i in task.items} == {i.question for i in whole.items}
    assert 20 < len(both[1].items) < 60
    for item in whole.items:
        left, sign, right = item.prompt.split()
        value = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert item.answer == str(value)
        assert whole.reward(item, f"= {value}") == 1.0
        assert whole.reward(item, f"{item.prompt} = {value}.") == 1.0
        assert whole.reward(item, f"= {value + 1}") == 0.0
        assert whole.reward(item, "no idea") == 0.0


def test_partial_credit_counts_as_wrong() -> None:
    task = load_task("chain_sum", size=1)
    item = task.items[0]
    assert task.reward(item, f"The answer is {item.answer}") == 1.0
    assert task.reward(item, f"{item.answer}{item.answer}") == 0.0
    countdown = load_task("countdown", size=1, config={"min_numbers": 2, "max_numbers": 2})
    item = countdown.items[0]
    assert countdown.reward(item, item.answer) == 1.0
    for text in ("1 + 1", "", "))((", "x" * 100):
        assert countdown.reward(item, text) == 0.0


def test_a_scorer_that_fails_on_a_text_counts_it_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    import reasoning_gym

    class Failing:
        def score_answer(self, answer: str, entry: Any) -> float:
            raise RuntimeError(f"cannot parse {answer}")

    monkeypatch.setattr(reasoning_gym, "create_dataset", lambda name, **options: Failing())
    score = find("reasoning-gym:any:{}")
    assert score(Item(user("q"), "blue"), "blue") == 0.0
    assert score(Item(user("q"), "3"), "3") == 1.0  # the right number needs no scorer


def test_options_of_a_dataset_are_used() -> None:
    items = load_task("chain_sum", size=20, config={"min_digits": 3, "max_digits": 3, "max_terms": 2}).items
    assert all(len(word) == 3 for item in items for word in item.entry["metadata"]["expression"].split()[::2])  # type: ignore[index]


def test_copy_is_graded_by_its_first_character() -> None:
    task = load_task("copy", size=1)
    item = task.items[0]
    assert item.answer == item.prompt[0]
    assert task.reward(item, item.answer + "9=") == 1.0
    assert task.reward(item, "=" + item.answer) == 0.0


def test_prompts_are_encoded_through_the_chat_template_if_there_is_one() -> None:
    pytest.importorskip("transformers")
    from etr.llm.models import tiny_model

    tokenizer = tiny_model().tokenizer
    item = Item(user("1+2"), "3")
    assert tokenizer.decode(encode(tokenizer, item)) == "1+2"
    tokenizer.chat_template = (
        "{% for m in messages %}?{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
    )
    assert tokenizer.decode(encode(tokenizer, item)) == "?1+2="


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_jsonl_items(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Capital of France?"}]
    rows = [{"prompt": "2+3?", "answer": 5}, "", {"prompt": chat, "answer": "Paris"}, {"prompt": "2+3?", "answer": "6"}]
    task = load_task(str(write(tmp_path / "t.jsonl", *rows)))
    assert [item.answer for item in task.items] == ["5", "Paris"]  # the second 2+3? is the same question
    assert task.items[1].messages == tuple(chat)
    assert task.items[1].prompt == "Capital of France?"
    assert [task.reward(task.items[1], text) for text in ("paris.", "It is Paris")] == [1.0, 0.0]
    assert [task.reward(task.items[0], text) for text in ("2 + 3 = 5.0", "6")] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, "line 2 lacks the key 'answer'; each line needs 'prompt' and 'answer'"),
        ({"answer": "x"}, "line 2 lacks the key 'prompt'; each line needs"),
        ("{'prompt': 1}", "line 2 is not JSON .* at column 2.*; write one object a line"),
        ([1], "line 2 is not a JSON object; write"),
        ({"prompt": " ", "answer": "x"}, "line 2 has an unusable 'prompt'; give text, or a list of messages"),
        ({"prompt": [{"role": "user"}], "answer": "x"}, "line 2 has an unusable 'prompt'"),
        ({"prompt": "x", "answer": True}, "line 2 has an unusable 'answer'; give text or a number"),
        ({"prompt": "x", "answer": " "}, "line 2 has an unusable 'answer'"),
    ],
)
def test_jsonl_mistakes_name_file_and_line(tmp_path: Path, line: Any, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {"prompt": "a", "answer": "b"}, line)
    with pytest.raises(InputError, match=rf"bad.jsonl' {message}"):
        load_task(str(path))


def test_unusable_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no items; write one object a line"):
        load_task(str(write(tmp_path / "empty.jsonl", "")))
    with pytest.raises(InputError, match=r"cannot read task file '.*none.jsonl' .*; give the path"):
        load_task(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe{}")
    with pytest.raises(InputError, match=r"cannot read task file .*; give the path of a UTF-8 .jsonl file"):
        load_task(str(tmp_path / "latin.jsonl"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "arithmetik"}, InputError, "unknown task 'arithmetik'; did you mean 'arithmetic'.*GALLERY.md$"),
        ({"name": "chain_sum", "config": {"max_term": 3}}, FieldError, "'max_term'; did you mean 'max_terms'"),
        ({"name": "chain_sum", "config": {"max_terms": 1}}, InputError, "refuses the options .*max_terms.*; mend them"),
        ({"name": "copy", "config": {"a": 1}}, InputError, "task 'copy' takes no options, got a; remove them"),
        ({"name": "copy", "size": 0}, InputError, "task size must be at least 1, not 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_task(**arguments)


def test_a_side_without_items(tmp_path: Path) -> None:
    path = write(tmp_path / "one.jsonl", {"prompt": "a", "answer": "b"})
    sides = []
    for split in ("train", "held-out"):
        try:
            load_task(str(path), split=split)
        except InputError as error:
            sides.append(str(error))
    assert len(sides) == 1
    assert "items; give it more distinct questions" in sides[0]


def test_missing_reasoning_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etr.llm.procedural.find_spec", lambda name: None)
    with pytest.raises(InputError, match="task 'arithmetic' needs reasoning-gym: pip install reasoning-gym"):
        load_task("arithmetic")
