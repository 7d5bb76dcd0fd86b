"""`--resume auto`: the newest run that can go on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from etr.errors import InputError
from etr.llm import resumable
from etr.runs import RunFolder


def fake(path: Path, steps: int, saved: int, age: int, evaluated: bool = True, kind: str = "llm") -> Path:
    with RunFolder.create(path, {"kind": kind, "settings": {"steps": steps, "eval_items": 4}}) as folder:
        if evaluated:
            folder.write_json("eval.json", {"before": {}, "after": {}})
    if saved:
        (path / f"checkpoints/step-{saved}").mkdir(parents=True)
        os.utime(path / f"checkpoints/step-{saved}", (1e9 - age, 1e9 - age))
    return path


def test_auto_is_the_newest_run_that_can_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    fake(runs / "finished", 8, 8, age=0)
    fake(runs / "nothing saved", 8, 0, age=0)
    fake(runs / "toy", 8, 4, age=0, kind="compare")
    older, newer = fake(runs / "b", 8, 4, age=20), fake(runs / "demo/llm", 8, 2, age=10)
    assert resumable.to_continue("auto", None) == newer
    assert resumable.to_continue("auto", runs / "b") == older
    assert resumable.to_continue("auto", None, steps=9) == runs / "finished"
    assert resumable.to_continue("auto", Path("new")) is None  # starts there
    assert resumable.to_continue("some/where", None) == Path("some/where")
    unevaluated = fake(runs / "unevaluated", 8, 8, age=5, evaluated=False)
    assert resumable.to_continue("auto", None) == unevaluated


def test_auto_begins_a_run_again_that_has_no_checkpoint_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from etr.cli import main

    out = fake(tmp_path / "k2", 8, 0, age=0, evaluated=False)
    (out / "checkpoints/.step-2.partial").mkdir(parents=True)  # killed while it wrote its first one
    assert resumable.to_continue("auto", out) is None
    assert not resumable.nothing_saved(fake(tmp_path / "saved", 8, 2, age=0))
    assert not resumable.nothing_saved(fake(tmp_path / "other", 8, 0, age=0, kind="compare"))
    words = ["train", "--resume", "auto", "--out", str(out), "--model", "tiny-random", "--task", "copy", "--steps", "1"]
    words += ["--prompts", "2", "--group-size", "2", "--eval-items", "0", "--engine", "transformers"]
    assert main(words) == 0
    assert "has no checkpoint yet; its run is begun again" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-1"]


def test_auto_says_when_there_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no run in 'runs' can continue: a run needs a checkpoint and steps that are"):
        resumable.to_continue("auto", None)
    fake(tmp_path / "x", 8, 8, age=0)
    with pytest.raises(InputError, match=r"no run in '.*x' can continue.*--extend-to for a finished one"):
        resumable.to_continue("auto", tmp_path / "x")
