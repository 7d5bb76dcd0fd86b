"""Rewards by name and of one's own; what hangs, crashes or lies costs one answer or stops with a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.llm.data.dynamic import collect_mixed
from etr.llm.items import Item, user
from etr.llm.rewards import Grader, Grades, overlong
from etr.llm.rewards.combine import Combination
from etr.llm.rewards.worker import plain
from etr.llm.tasks import Task

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "rewards.md"
ITEM = Item(user("q"), "5")
MINE = """
import ctypes, os, re, time

def any(prompt, completion, answer):
    if completion == "loop":
        while True:
            pass
    if completion == "sleep":
        time.sleep(1000)
    if completion == "backtrack":
        re.match(r"(a+)+$", "a" * 60 + "b")
    if completion == "exit":
        os._exit(3)
    if completion == "crash":
        ctypes.string_at(0)
    if completion == "sys":
        raise SystemExit(1)
    if completion == "raise":
        1 / 0
    if completion.startswith("sleep "):
        os.system(completion)
    return {"nan": float("nan"), "text": "1", "none": None, "two": 2.0, "empty": {}}.get(completion, 1.0)

def parts(prompt, completion, answer):
    parts = {"right": completion == answer, "form": 0.5}
    return parts if completion != "other" else {"right": 1.0}

def seen(prompt, completion, answer):
    return float((prompt, completion, answer) == ("q", "c", "5"))

def pid(prompt, completion, answer):
    open(completion, "a").write(f"{os.getpid()}\\n")
    return 1.0

number = 3
"""


def task(**grading: str) -> Task:
    return Task("t", (ITEM,), "text", grading)


@pytest.fixture
def mine(tmp_path: Path) -> str:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return str(path)


def grade(reward: str, *completions: str, timeout: float = 20.0, **grading: str) -> Grades:
    with Grader(task(**grading), reward, timeout, workers=2, say=lambda text: None) as grader:
        return grader.grade([ITEM] * len(completions), completions)


def test_what_hangs_or_dies_costs_one_answer_each(mine: str) -> None:
    said: list[str] = []
    completions = ["ok", "loop", "sleep", "backtrack", "exit", "crash", "sys", "raise", "raise", "ok"]
    with Grader(task(), f"{mine}:any", timeout=0.5, workers=2, say=said.append) as grader:
        grades = grader.grade([ITEM] * len(completions), completions)
        assert grades.rewards == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]
        assert (grades.timeouts, grades.errors) == (3, 5)
        assert grader.grade([ITEM] * 4, ["ok"] * 4).rewards == [1.0] * 4  # the pool is whole again
    assert len(said) == 3  # the first of each kind
    assert any("raised" in text for text in said)
    assert any("took longer than 0.5 s" in text for text in said)
    assert any("ended its process (exit code" in text for text in said)


def test_an_exception_is_shown_with_its_line(mine: str) -> None:
    said: list[str] = []
    with Grader(task(), f"{mine}:any", workers=1, say=said.append) as grader:
        grader.grade([ITEM] * 2, ["raise", "ok"])
    line = MINE.splitlines().index("        1 / 0") + 1
    assert re.search(rf"raised ZeroDivisionError: division by zero \('.*mine.py' line {line}\)", said[0])


def test_a_killed_worker_takes_what_it_started_with_it(mine: str) -> None:
    command = f"sleep 1000.{os.getpid()}"  # of this test alone
    assert grade(f"{mine}:any", command, "ok", timeout=0.5).timeouts == 1
    time.sleep(0.1)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert command not in running


def test_workers_end_with_the_grader(mine: str, tmp_path: Path) -> None:
    log = tmp_path / "pids"
    grade(f"{mine}:pid", *[str(log)] * 8)
    pids = set(log.read_text().split())
    assert pids and str(os.getpid()) not in pids
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize(
    ("completion", "message"),
    [
        ("nan", r"returned nan \(float\); return a finite number or a dict"),
        ("text", r"returned '1' \(str\); return a finite number"),
        ("none", r"returned None \(NoneType\); return"),
        ("empty", r"returned \{\} \(dict\); return"),
        ("two", r"gave 2, outside \[0, 1\]; declare other bounds with the task option reward_bounds=LOW,HIGH"),
        ("raise", r"failed on all 1 answers of a batch: raised ZeroDivisionError.*line \d+"),
        ("exit", r"failed on all 1 answers of a batch: ended its process \(exit code 3\)"),
    ],
)
def test_what_is_no_reward_stops_with_a_sentence(mine: str, completion: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        grade(f"{mine}:any", completion)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("exct", "unknown reward 'exct'; did you mean 'exact'"),
        ("regex:(", "is no regular expression"),
        ("{folder}/mine.py:nothing", "unknown name 'nothing'"),
        ("{folder}/mine.py:number", "is no function; give one that takes"),
        ("{folder}/none.py:f", "there is no file '.*none.py'; check the path"),
        ("{folder}/bad.py:f", r"'.*bad.py' line 2 fails \(ValueError: of mine\)"),
        ("no_such_module:f", "No module named 'no_such_module'; run the command in the folder"),
    ],
)
def test_a_reward_that_cannot_be_built_is_refused_at_the_start(mine: str, reward: str, message: str) -> None:
    folder = Path(mine).parent
    (folder / "bad.py").write_text("pass\nraise ValueError('of mine')\n")
    with pytest.raises(InputError, match=message):
        Grader(task(), reward.format(folder=folder), workers=1)


def test_a_function_gets_prompt_completion_and_answer(mine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(mine).parent)
    assert grade("mine.py:seen", "c").rewards == [1.0]
    assert grade("mine:seen", "c").rewards == [1.0]


def test_components_are_averaged_or_weighted(mine: str) -> None:
    grades = grade(f"{mine}:parts", "5", "6")
    assert grades.rewards == [0.75, 0.25]
    assert grades.components == {"right": [1.0, 0.0], "form": [0.5, 0.5]}
    weighted = grade(f"{mine}:parts", "5", "6", reward_weights="right=3, form=1")
    assert weighted.rewards == pytest.approx([(3 + 0.5) / 4, 0.5 / 4])
    with pytest.raises(InputError, match="gave the components right after right, form"):
        grade(f"{mine}:parts", "5", "other")
    with pytest.raises(InputError, match="unknown component"):
        grade(f"{mine}:parts", "5", reward_weights="right=1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reward_weights": "right"}, "has 'right'; write component=WEIGHT"),
        ({"reward_weights": "a=-1"}, "has 'a=-1'"),
        ({"reward_weights": "a=0"}, "are all 0"),
        ({"reward_bounds": "1"}, "reward_bounds is '1'; write LOW,HIGH"),
        ({"reward_bounds": "1,0"}, "reward_bounds is '1,0'"),
    ],
)
def test_wrong_weights_and_bounds(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Combination.from_options(options)


def test_declared_bounds(mine: str) -> None:
    assert grade(f"{mine}:any", "two", reward_bounds="-1,2").rewards == [2.0]


def test_rewards_by_name() -> None:
    assert grade("exact", "5", "5.", "55").rewards == [1.0, 0.0, 0.0]
    assert grade("numeric", "= 5.0", "#### 6", r"\boxed{10/2}").rewards == [1.0, 0.0, 1.0]
    assert grade("regex:^<a>{answer}</a>$", "<a>5</a>", "<a>55</a>", "5").rewards == [1.0, 0.0, 0.0]
    assert grade("auto", "5", "6").rewards == [1.0, 0.0]
    message = "the reward 'numeric' needs answers that are numbers, not 'Paris'"
    with pytest.raises(InputError, match=message), Grader(task(), "numeric") as grader:
        grader.grade([Item(user("q"), "Paris")], ["Paris"])
    with pytest.raises(InputError, match="reward_timeout is 0; give a positive number"):
        Grader(task(), timeout=0)


def test_mathematics_and_evil_patterns_run_in_the_pool() -> None:
    pytest.importorskip("math_verify")
    assert grade("math", r"\boxed{\frac{10}{2}}", "6").rewards == [1.0, 0.0]
    assert grade("regex:^(a+)+$", "a" * 60 + "b", "a", timeout=0.5) == Grades([0.0, 1.0], {}, 1, 0)


def test_a_power_tower_is_a_timeout_or_wrong_but_never_a_hang() -> None:
    pytest.importorskip("math_verify")
    assert grade("math", r"\boxed{9^{9^{9^{9}}}}", "5", timeout=1.5).rewards == [0.0, 1.0]


@pytest.mark.slow
def test_a_script_without_a_guard_is_not_run_again(tmp_path: Path, mine: str) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from etr.llm.items import Item, user\nfrom etr.llm.rewards import Grader\nfrom etr.llm.tasks import Task\n"
        "print('started')\nitem = Item(user('q'), '5')\n"
        f"with Grader(Task('t', (item,), 'text'), {mine + ':any'!r}, workers=1) as g:\n"
        "    print(g.grade([item], ['ok']).rewards)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["started", "[1.0]"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1.0), (1, 1.0), (torch.tensor(0.5), 0.5), (torch.ones(2), None), ("1", None), (float("inf"), None),
        ({"a": 1}, {"a": 1.0}), ({"a": None}, None), ({1: 1.0}, None),
    ],
)  # fmt: skip
def test_plain_values(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_overlong() -> None:
    rewards, lengths = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0]), torch.tensor([10, 80, 90, 100, 100])
    finished = torch.tensor([True, True, True, True, False])
    kept, everything = overlong("keep", rewards, lengths, finished, 100)
    assert kept.equal(rewards) and everything.all()
    assert overlong("mask", rewards, lengths, finished, 100)[1].equal(finished)
    # By hand: no penalty up to 80 tokens, then 1/20 for each token more.
    assert overlong("penalty", rewards, lengths, finished, 100)[0].tolist() == pytest.approx(
        [1.0, 1.0, -0.5, 0.0, -1.0]
    )
    with pytest.raises(InputError, match="overlong is 'drop'; write keep, mask or penalty"):
        overlong("drop", rewards, lengths, finished, 100)


@pytest.mark.parametrize(
    ("refills", "expected", "drawn"), [(0, [1, 2, 3, 5], 4), (1, [1, 2, 3, 5], 5), (9, [1, 3, 5, 7], 6)]
)
def test_refills_replace_groups_without_signal(refills: int, expected: list[int], drawn: int) -> None:
    stock = iter([1, 2, 3, 5, 6, 7, 8])
    calls = []

    def draw(attempt: int, count: int) -> list[int]:
        calls.append((attempt, count))
        return [next(stock) for _ in range(count)]

    groups, seen = collect_mixed(draw, lambda group: group % 2 == 1, 4, refills)
    assert (groups, seen) == (expected, drawn)
    assert calls == [(0, 4), (1, 1), (2, 1)][: refills + 1]


@pytest.mark.slow
def test_the_page_works_as_written(tmp_path: Path) -> None:
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    outputs = []
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if language == "bash":
            command = [sys.executable, "-m", *body.split()]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
            assert done.returncode == 0, done.stderr
            outputs.append(done.stdout)
            continue
        first, rest = body.split("\n", 1)
        (tmp_path / first.split()[1]).write_text(rest if language == "json" else body)
    assert all(json.loads(line) for line in (tmp_path / "sums.jsonl").read_text().splitlines())
    assert "avg@4" in outputs[0] and "8 questions" in outputs[0]
