"""The page on the replay proof: its commands and its Python run, and its numbers are those of the code."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from pages import HOWTO, fences
from records import made_llm_batch, record_of

from etr.batch import Batch
from etr.cli import main
from etr.recipe import load_recipe
from etr.recorded import load
from etr.recording import ENOUGH, MOST_BYTES, UPDATES
from etr.replays.agreement import TOLERANCE

PAGE = (HOWTO / "replay.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return [text for found, text in fences(HOWTO / "replay.md") if found == language]


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ETR_CACHE", str(tmp_path / "cache"))
    (commands,) = blocks("bash")
    for line in commands.splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert capsys.readouterr().out.count("bit-equal") == 3 and Path("replay.png").exists()


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (text,) = blocks("python")
    exec(compile(text, "replay.md", "exec"), {})


def test_the_numbers_are_the_codes(tmp_path: Path) -> None:
    assert f"at most {TOLERANCE:g}".replace("e-06", "e-6") in PAGE.replace("\n", " ")
    assert f"{ENOUGH:g} nats" in PAGE and f"{UPDATES} updates with a gradient" in PAGE
    assert f"{MOST_BYTES // 2**20} MiB" in PAGE
    batch: Batch = made_llm_batch(rows=64, width=1024)
    record_of(load_recipe("etr"), batch, tmp_path / "r")
    per_token = (tmp_path / "r").stat().st_size / (64 * 1024)
    assert per_token == pytest.approx(45, rel=0.02) and load(tmp_path / "r").batch.tokens is not None
    assert 512 * 1024 * per_token == pytest.approx(24e6, rel=0.03)
