"""Trackers: the real libraries on this machine alone, and that a tracker's trouble never becomes the run's."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from etr.errors import InputError
from etr.llm import tracking
from etr.llm.tracking import Trackers, check, run_id
from etr.runs import RunFolder

# A run of two steps and its continuation from step 2 on, in a process of its own, where nothing can reach a network.
SCRIPT = """
import socket, sys
from pathlib import Path
def refuse(self, address, *rest):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise OSError(f"network: {address}")
    return connect(self, address, *rest)
connect, socket.socket.connect = socket.socket.connect, refuse
from etr.llm.tracking import Trackers
folder = Path(sys.argv[2])
for first, rewards in ((1, (0.25, 0.5)), (2, (0.75,))):
    with Trackers([sys.argv[1]], folder, {"kind": "llm", "settings": {"lr": 0.1}}, first, print) as trackers:
        for step, reward in enumerate(rewards, first):
            trackers.add(step, {"reward": reward, "held_out/pass@1": float("nan")})
"""


def tracked(name: str, folder: Path) -> str:
    """What the process said; its caches and databases lie in the folder's parent."""
    RunFolder.create(folder, {}).close()
    places = {
        "TRACKIO_DIR": "trackio",
        "WANDB_CACHE_DIR": "c",
        "WANDB_CONFIG_DIR": "c",
        "HOME": "home",
        "HF_HOME": "hf",
    }
    own = {key: str(folder.parent / value) for key, value in places.items()}
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "TRACKIO", "HF_"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(folder)],
        capture_output=True, text=True, timeout=120, check=True, cwd=folder.parent,
        env={**environment, **own, "PYTHONPATH": str(Path(__file__).parent.parent), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert "network" not in done.stderr + done.stdout, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_a_key_keeps_the_run_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    said = tracked("wandb", folder)
    assert said.count("wandb is offline; to send the run later: wandb sync") == 2 and "failed" not in said
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2 and {path.name for path in files} == {f"run-{run_id(folder)}.wandb"}
    for path, value in zip(sorted(files), (b"0.5", b"0.75"), strict=True):
        assert b"training step" in path.read_bytes() and value in path.read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_has_every_row_of_a_resumed_run(tmp_path: Path) -> None:
    said = tracked("trackio", tmp_path / "run")
    assert "failed" not in said
    (database,) = (tmp_path / "trackio").glob("etr*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY rowid").fetchall()
    assert len({name for name, _, _ in rows}) == 1
    assert [(step, json.loads(metrics)["reward"]) for _, step, metrics in rows] == [(1, 0.25), (2, 0.5), (2, 0.75)]


def board(path: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars("reward")]


def test_tensorboard_has_the_same_numbers_also_after_a_resume(tmp_path: Path) -> None:
    for first, rewards in ((1, (0.0, 0.1, 0.2)), (2, (0.7,))):
        with Trackers(["tensorboard"], tmp_path, {}, first, print) as trackers:
            for step, reward in enumerate(rewards, first):
                trackers.add(step, {"reward": reward})
    assert board(tmp_path) == [(1, 0.0), (2, 0.7)]


class Failing:
    """Fails at its second row."""

    def __init__(self, *settings: object) -> None:
        self.rows: list[int] = []

    def add(self, step: int, values: object) -> None:
        self.rows.append(step)
        if len(self.rows) == 2:
            raise ConnectionError("no answer\nfrom the server")

    def close(self) -> None:
        raise TimeoutError


class Unstartable(Failing):
    def __init__(self, *settings: object) -> None:
        raise RuntimeError("no disk")


def test_a_tracker_that_fails_is_told_once_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Failing] = []

    def failing(*settings: object) -> Failing:
        made.append(Failing())
        return made[-1]

    monkeypatch.setattr(tracking, "TRACKERS", {"bad": failing, "worse": Unstartable, **tracking.TRACKERS})
    said: list[str] = []
    with Trackers(["bad", "worse", "tensorboard"], tmp_path, {}, 1, said.append) as trackers:
        for step in (1, 2, 3):
            trackers.add(step, {"reward": step / 10})
    assert said == [
        "worse failed (no disk) and is left out from now on; metrics.jsonl has every row",
        "bad failed (no answer) and is left out from now on; metrics.jsonl has every row",
    ]
    assert made[0].rows == [1, 2]
    assert board(tmp_path) == [(1, 0.1), (2, 0.2), (3, 0.3)]


def test_a_tracker_that_fails_at_the_end_is_told_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "TRACKERS", {"bad": Failing})
    said: list[str] = []
    Trackers(["bad"], tmp_path, {}, 1, said.append).close()
    assert said == ["bad failed (TimeoutError) and is left out from now on; metrics.jsonl has every row"]


def test_names_are_checked_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    check(())
    check(("tensorboard",))
    with pytest.raises(InputError, match=r"unknown tracker 'wandbb'; did you mean 'wandb'"):
        check(("tensorboard", "wandbb"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^track wandb needs a package that is not installed: pip install wandb$"):
        check(("wandb",))


def test_a_resume_finds_the_same_run_and_another_run_is_another(tmp_path: Path) -> None:
    for name in ("a", "b"):
        RunFolder.create(tmp_path / name, {}).close()
    first = run_id(tmp_path / "a")
    RunFolder.resume(tmp_path / "a", 2).close()
    assert run_id(tmp_path / "a") == first != run_id(tmp_path / "b")
