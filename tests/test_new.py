"""`etr new`: what it makes is a good package, what it cannot make it refuses, and the tutorial works as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import etr
from etr.cli import main
from etr.errors import InputError
from etr.new import KINDS, create

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "plugin.md"
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Makes a folder on PYTHONPATH a place where packages are installed, those in place (-e) included.
SITE = """import site, pathlib
for folder in pathlib.Path(__file__).parent.glob("lib/python*/site-packages"):
    site.addsitedir(str(folder))
"""


# What it makes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["my_method", "x", "the_longest_name_that_a_package_may_have"])
def test_the_package_is_whole_and_clean(name: str, tmp_path: Path) -> None:
    folder = create(name, tmp_path, KINDS)
    assert [path.name for path in tmp_path.iterdir()] == [name]  # nothing temporary is left
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["etr.plugins"] == {name: name} and project["name"] == name.replace("_", "-")
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}
    assert made == {f"src/{name}/{part}.py" for part in ("__init__", *KINDS)} | {
        f"tests/test_{name}_{kind}.py" for kind in KINDS
    }
    assert not [path for path in folder.rglob("*") if path.is_file() and re.search(r"{[{%#]|[%#]}", path.read_text())]
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_package_has_only_the_kinds_asked_for(tmp_path: Path) -> None:
    folder = create("my_world", tmp_path, ("task", "environment"))
    assert {path.name for path in (folder / "src" / "my_world").iterdir()} == {
        "__init__.py",
        "environment.py",
        "task.py",
    }
    assert "from my_world import environment, task\n" in (folder / "src" / "my_world" / "__init__.py").read_text()
    readme = (folder / "README.md").read_text()
    assert "| task | `my-world-task` | `src/my_world/task.py` |" in readme and "objective" not in readme


def test_the_command_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["new", "my_method", "--at", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"cd {tmp_path / 'my_method'}" in out and "etr check my_method" in out and "engine" not in out


# What it refuses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("my-method", "'my-method' cannot be the name of a package; take small letters, digits and _"),
        ("2fast", "cannot be the name"), ("MyMethod", "cannot be the name"), ("class", "cannot be the name"),
        ("_mine", "cannot be the name"), ("a/b", "cannot be the name"), ("..", "cannot be the name"),
        ("", "cannot be the name"), ("größe", "cannot be the name"), ("a__b", "cannot be the name"),
        ("m" * 41, "at most 40 of them"),
        ("dapo", "objective 'dapo' is already registered by etr.objectives.dapo.DAPO; choose another name"),
        ("json", "the Python module 'json' exists"), ("torch", "the Python module 'torch' exists"),
        ("sys", "the Python module 'sys' exists"), ("here", "'.*here' exists already; choose another name"),
    ],
)  # fmt: skip
def test_a_name_that_does_not_work(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(InputError, match=what):
        create(name, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["here"] and not list((tmp_path / "here").iterdir())


def test_a_name_is_taken_only_by_its_own_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"environment 'tree' is already registered by toy_envs.token_tree.TokenTree"):
        create("tree", tmp_path, ("environment",))
    assert create("tree", tmp_path, ("task",)).is_dir() and "tree" not in etr.list_objectives()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no folder '.*nowhere' to make 'my_method' in; create it"):
        create("my_method", tmp_path / "nowhere")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_text

    def full(path: Path, text: str, **options: str) -> int:
        if path.name == "README.md":
            raise OSError(28, "No space left on device")
        return write(path, text, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"cannot make '.*my_method' \(No space left on device\)"):
        create("my_method", tmp_path)
    assert not list(tmp_path.iterdir())


# The tutorial, as a user follows it ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after all commands of the page, and the output of each by its line. pip installs into that folder."""
    folder = tmp_path_factory.mktemp("plugin-author")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(SITE)
    environment = {**os.environ, "COLUMNS": "160", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(folder / "site"), "PIP_PREFIX": str(folder / "site"), "PIP_NO_INDEX": "1"}
    for name in ("ETR_CACHE", "ETR_PLUGINS"):
        environment.pop(name, None)
    outputs, here = dict[str, str](), folder
    for language, body in FENCE.findall(PAGE.read_text(encoding="utf-8")):
        for line in body.splitlines() if language == "bash" else ():
            words = shlex.split(line)
            if words[0] == "cd":
                here = (here / words[1]).resolve()
                continue
            extra = dict([words.pop(0).split("=")]) if "=" in words[0] else {}
            outputs[line] = outputs.get(line, "") + output(words, here, environment | extra)
    return folder, outputs


def output(words: list[str], here: Path, environment: dict[str, str]) -> str:
    """What a command prints; one that fails is an error."""
    programs = {"etr": [sys.executable, "-m", "etr"], "python": [sys.executable]}
    quick = ("--seeds", "8", "--iterations", "6") if {"toy", "compare"} & set(words) else ()
    command = [*programs[words[0]], *words[1:], *quick]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_tests_of_both_packages_pass(session: tuple[Path, dict[str, str]]) -> None:
    runs = session[1]["python -m pytest"]
    passed = [int(number) for number in re.findall(r"(\d+) passed", runs)]
    assert len(passed) == 2 and passed[0] == len(etr.laws.LAWS) + 1 and "failed" not in runs and "skipped" not in runs


@pytest.mark.slow
def test_the_names_are_known_everywhere(session: tuple[Path, dict[str, str]]) -> None:
    folder, outputs = session
    assert re.search(r"my-method 0\.1\.0 +│ loaded +│ objective my_method ", outputs["etr plugins"])
    assert outputs["etr check my_method"].count("│ holds") == len(etr.laws.LAWS)
    assert re.search(r"│ my_method +│ +\d\.\d{3} \[", outputs["etr compare my_method grpo --env bandit"])
    assert re.search(r"│ etr +│ +\d\.\d{3} \[", outputs["etr toy --env my-world"])
    (train,) = (text for line, text in outputs.items() if line.startswith("etr train"))
    assert "rollout engine: my-world-engine (my-world 0.1.0)" in train and "step    2/2" in train
    answers = list((folder / "my_world" / "runs").glob("toy-*/figures/my-world-answer.png"))
    assert len(answers) == 1 and answers[0].stat().st_size > 5_000


@pytest.mark.slow
def test_the_variable_does_what_the_page_says(session: tuple[Path, dict[str, str]]) -> None:
    outputs = session[1]
    assert outputs["ETR_PLUGINS=none etr plugins"].count("switched off") == 2
    only = outputs["ETR_PLUGINS=my_world etr plugins"]
    assert (
        only.count("switched off") == 1 and "environment my-world, task my-world-task, engine my-world-engine" in only
    )


@pytest.mark.slow
def test_the_page_shows_what_is_there(session: tuple[Path, dict[str, str]]) -> None:
    folder, _ = session
    shown = {name: body for name, body in FENCE.findall(PAGE.read_text(encoding="utf-8"))}
    objective = (folder / "my_method" / "src" / "my_method" / "objective.py").read_text()
    for line in filter(None, shown["text"].splitlines()):
        assert line in objective
    assert shown["toml"] in (folder / "my_method" / "pyproject.toml").read_text()
