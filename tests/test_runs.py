"""The folder of a run: what it holds, and what is left of it after kills, full disks and broken files."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import etr
from etr.environment import environment, git_commit
from etr.errors import InputError
from etr.files import append_line, read_json
from etr.runs import RunFolder, atomic_write, default_out, is_run, read_config, read_metrics, read_rows

CONFIG = {
    "kind": "llm",
    "recipe": {"objective": "etr", "eps": [0.2, 0.28], "micro": None},
    "text": "naïve: \n'x'",
}


def make(path: Path, steps: int = 3) -> Path:
    with RunFolder.create(path, CONFIG) as run:
        for step in range(steps):
            run.log(step, {"reward": step / 10, "entropy": 1.5})
    return path


def steps(path: Path) -> list[float]:
    return [row["step"] for row in read_metrics(path)]


def test_a_run_can_be_read_back(tmp_path: Path) -> None:
    path = make(tmp_path / "deep" / "run")
    assert is_run(path) and not is_run(tmp_path)
    assert read_config(path) == CONFIG
    assert read_metrics(path) == [{"step": s, "reward": s / 10, "entropy": 1.5} for s in range(3)]
    assert (path / "figures").is_dir()


def test_rows_are_on_disk_before_the_run_is_closed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", CONFIG)
    run.log(0, {"reward": 0.5})
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"step": 0, "reward": 0.5}\n'
    run.close()


def test_numbers_that_json_lacks_are_null_on_disk_and_nan_when_read(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", {}) as run:
        run.log(0, {"a": math.nan, "b": math.inf, "c": torch.tensor(2.5).item()})
        run.write_json("x.json", {"list": [math.nan, 1.0], "nested": {"b": -math.inf}})
    assert json.loads((tmp_path / "run/metrics.jsonl").read_text()) == {
        "step": 0,
        "a": None,
        "b": None,
        "c": 2.5,
    }
    (row,) = read_metrics(tmp_path / "run")
    assert math.isnan(row["a"]) and math.isnan(row["b"]) and row["c"] == 2.5
    assert read_json(tmp_path / "run/x.json") == {"list": [None, 1.0], "nested": {"b": None}}


def test_a_metric_called_step_is_refused(tmp_path: Path) -> None:
    with (
        RunFolder.create(tmp_path / "run", {}) as run,
        pytest.raises(InputError, match="may not be called 'step'"),
    ):
        run.log(0, {"step": 1.0})


# ------------------------------------------------------------------------------------------------ create


def test_a_run_is_not_replaced_unless_asked(tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    sentence = re.escape(
        f"{path} already holds a run; choose another --out, continue it with --resume or replace it with --overwrite"
    )
    with pytest.raises(InputError, match=f"^{sentence}$"):
        RunFolder.create(path, {})
    assert len(read_metrics(path)) == 3
    (path / "left.bin").write_bytes(b"x")
    RunFolder.create(path, {"kind": "toy"}, overwrite=True).close()
    assert read_config(path) == {"kind": "toy"}
    assert sorted(p.name for p in path.iterdir()) == ["config.yaml", "environment.json", "figures"]


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: true")
    with pytest.raises(InputError, match="is not empty and holds no run; choose another --out"):
        RunFolder.create(tmp_path, {}, overwrite=True)
    assert (tmp_path / "config.yaml").read_text() == "mine: true"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"cannot use '.*file.*' for a run \(.+\); choose another --out"):
            RunFolder.create(place, {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=r"cannot use .* \(Permission denied\); choose another --out"):
        RunFolder.create(tmp_path / "run", {})


def test_a_config_that_yaml_cannot_hold_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="cannot represent"):
        RunFolder.create(tmp_path / "run", {"x": object()})
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ resume


def test_resume_drops_later_rows_and_goes_on(tmp_path: Path) -> None:
    path = make(tmp_path / "run", steps=5)
    with RunFolder.resume(path, step=3) as run:
        assert steps(path) == [0, 1, 2]
        run.log(3, {"reward": 9.0})
    assert steps(path) == [0, 1, 2, 3]
    assert read_metrics(path)[-1] == {"step": 3, "reward": 9.0}
    assert [entry["step"] for entry in read_json(path / "environment.json")["resumed"]] == [3]


@pytest.mark.parametrize("keep", range(1, 30, 4))
def test_resume_after_a_kill_in_the_middle_of_a_row(tmp_path: Path, keep: int) -> None:
    path = make(tmp_path / "run")
    file = path / "metrics.jsonl"
    *_, last = whole = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(whole[:-1]) + last[:keep])
    assert steps(path) == [0, 1]
    with RunFolder.resume(path, step=2) as run:
        run.log(2, {"reward": 0.2, "entropy": 1.5})
    assert file.read_bytes() == b"".join(whole)


def test_a_last_row_without_its_line_end_counts(tmp_path: Path) -> None:
    path = make(tmp_path / "run")
    file = path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().rstrip(b"\n"))
    assert steps(path) == [0, 1, 2]
    RunFolder.resume(path, step=3).close()
    assert file.read_bytes().endswith(b"}\n")


def test_resume_before_the_first_row(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {}).close()
    with RunFolder.resume(tmp_path / "run", step=0) as run:
        run.log(0, {"reward": 1.0})
    assert steps(tmp_path / "run") == [0]


def test_resume_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run to resume; give the folder of one or omit --resume"):
        RunFolder.resume(tmp_path, step=1)


# ------------------------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"reward": 1}', b'{"step": 1, "reward": "much"}', b"\xff"])
def test_a_broken_row_that_no_kill_explains_is_named(tmp_path: Path, line: bytes) -> None:
    path = make(tmp_path / "run")
    file = path / "metrics.jsonl"
    file.write_bytes(line + b"\n" + file.read_bytes())
    with pytest.raises(InputError, match=r"metrics.jsonl' line 1 is not a row of the run; mend the file"):
        read_metrics(path)


@pytest.mark.parametrize("text", [b"a: [1", b"a: 1\n b: 2", b"\xff\xfe"])
def test_a_config_with_a_typo_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "config.yaml").write_bytes(text)
    with pytest.raises(InputError, match=r"^[^\n]*config.yaml' is not valid YAML \([^\n]+\); mend the file[^\n]*$"):
        read_config(tmp_path)


def test_other_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read '.*config.yaml' \(No such file"):
        read_config(tmp_path)
    with pytest.raises(InputError, match=r"cannot read '.*metrics.jsonl' \(No such file"):
        read_metrics(tmp_path)
    (tmp_path / "config.yaml").write_text("- a list")
    with pytest.raises(InputError, match="holds no keys and values"):
        read_config(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match=r"x.json' is not valid JSON \(.*line 1"):
        read_json(tmp_path / "x.json")
    with pytest.raises(InputError, match=r"cannot read '.*y.json' \(No such file"):
        read_json(tmp_path / "y.json")


# ------------------------------------------------------------------------------------------------ writing


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "x", "old")
    monkeypatch.setattr(os, "fsync", _disk_full)
    with pytest.raises(InputError, match=r"cannot write '.*x' \(No space left on device\); free some space"):
        atomic_write(tmp_path / "x", b"new")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x", "old")]


def test_files_get_the_permissions_of_the_user(tmp_path: Path) -> None:
    atomic_write(tmp_path / "x", "y")
    (tmp_path / "plain").write_text("y")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_disk_that_fills_up_in_the_middle_of_a_row_keeps_the_earlier_rows(tmp_path: Path) -> None:
    """A limit on file size makes the system take a part of the row and refuse the rest, like a full disk."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n')
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(InputError, match=r"metrics.jsonl' \(.+\); its earlier rows are intact: .* --resume"):
            append_line(path, '{"step": 1, "reward": 0.5}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == '{"step": 0}\n'


def _disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------------------------------------ rows that wait


def full_after(bytes_: int) -> None:
    """From now on no file of this process may grow beyond so many bytes: what a full disk does."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def room() -> Iterator[Callable[[int], None]]:
    """`full_after`, taken back at the end."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield full_after
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_rows_that_a_full_disk_refuses_wait_for_room(tmp_path: Path, room: Callable[[int], None]) -> None:
    path = tmp_path / "run"
    with RunFolder.create(path, {}) as run:
        run.log(0, {"reward": 0.0})
        room((path / "metrics.jsonl").stat().st_size + 9)
        with pytest.warns(RuntimeWarning, match=r"cannot write .*; new rows wait in memory") as record:
            run.log(1, {"reward": 0.1})
            run.append("samples.jsonl", [{"step": 1, "text": "x" * 99}])
            run.log(2, {"reward": 0.2})
        assert len(record) == 1 and steps(path) == [0]
        with pytest.raises(InputError, match=r"cannot write '.*metrics.jsonl'"):
            run.flush()
        room(resource.RLIM_INFINITY)
        run.log(3, {"reward": 0.3})
        assert steps(path) == [0, 1, 2, 3]
    assert read_rows(path / "samples.jsonl") == [{"step": 1, "text": "x" * 99}]


def test_rows_that_still_wait_at_the_end_are_not_lost_in_silence(tmp_path: Path, room: Callable[[int], None]) -> None:
    with pytest.raises(InputError, match=r"cannot write"), RunFolder.create(tmp_path / "a", {}) as run:
        room(1)
        with pytest.warns(RuntimeWarning):
            run.log(1, {"reward": 0.1})
    room(resource.RLIM_INFINITY)
    with pytest.raises(ZeroDivisionError), RunFolder.create(tmp_path / "b", {}) as run:
        room(1)
        with pytest.warns(RuntimeWarning):
            run.log(1, {"reward": 0.1})
        raise ZeroDivisionError  # what ended the run is the news


def test_resume_drops_later_rows_of_every_file(tmp_path: Path) -> None:
    path = make(tmp_path / "run", steps=4)
    run = RunFolder(path)
    run.append("samples.jsonl", [{"step": step, "values": [step, None]} for step in (1, 3)])
    RunFolder.resume(path, step=3).close()
    assert steps(path) == [0, 1, 2]
    assert read_rows(path / "samples.jsonl") == [{"step": 1, "values": [1, None]}]


# ------------------------------------------------------------------------------------------------ environment


def test_environment_names_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etr.environment.PACKAGES", ("torch", "no-such-package"))
    record = environment()
    assert record["etr"] == etr.__version__
    assert record["packages"] == {"torch": torch.__version__, "no-such-package": None}
    assert record["threads"] == torch.get_num_threads()
    json.dumps(record, allow_nan=False)


def test_git_commit_of_a_checkout_only(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *who, *words], capture_output=True, text=True).stdout

    git("init")
    assert git_commit(tmp_path) is None  # no commit yet
    (tmp_path / "lib").mkdir()
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "x")
    head = git("rev-parse", "HEAD").strip()
    assert git_commit(tmp_path) == head and len(head) == 40
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{head}-dirty"
    assert git_commit(tmp_path / "lib") is None  # a package inside somebody else's checkout


def test_default_folders_are_named_after_the_recipe_and_never_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen = set()
    for _ in range(4):
        path = default_out("my_module:Mine/../x")
        assert re.fullmatch(r"my_module-Mine-\.\.-x-\d{8}-\d{6}(-\d)?", path.name) and path.parent == Path("runs")
        path.mkdir(parents=True)
        seen.add(path)
    assert len(seen) == 4
