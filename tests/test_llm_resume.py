"""Runs that survive: killed at any moment, with a full disk or a dead engine, a run continues bit for bit."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from etr.errors import InputError
from etr.llm import resumable, run
from etr.llm.config import TrainConfig
from etr.llm.optimizers import Optimizer
from etr.llm.rollout import EngineError
from etr.llm.train import Trainer
from etr.recipe import load_recipe
from etr.runs import read_metrics

pytest.importorskip("transformers")
CONFIG = TrainConfig(
    model="tiny-random", task="copy", steps=8, prompts=2, group_size=4, max_new_tokens=3, save_every=2,
    engine="transformers", eval_items=4, eval_samples=2, eval_every=4, device="cpu",
)  # fmt: skip
FIELDS = {"optimizer.lr": 3e-3, "optimizer.updates": 2}
CLOCKS = ("seconds", "tokens_per_s", "memory")


def quietly(*step: object) -> None:
    pass


def start(out: Path, config: TrainConfig = CONFIG, on_step: Callable[..., None] = quietly) -> list[str]:
    """Run to the end; returns what the run said."""
    said: list[str] = []
    run.start(load_recipe("etr", FIELDS), config, out, False, said.append, on_step)
    return said


def resume(out: Path) -> list[str]:
    said: list[str] = []
    run.resume(out, None, said.append, quietly)
    return said


def rows(out: Path) -> list[dict[str, str]]:
    """The metrics without what a clock says; as text, so that NaN equals NaN."""
    return [{k: str(v) for k, v in row.items() if not k.startswith(CLOCKS)} for row in read_metrics(out)]


def checkpoints(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def assert_same_run(one: Path, other: Path, step: int = CONFIG.steps) -> None:
    """Metrics, samples, evaluations, and every tensor of weights, optimizer and random states."""
    assert rows(one) == rows(other)
    assert (one / "samples.jsonl").read_bytes() == (other / "samples.jsonl").read_bytes()
    for name in ("eval.json", "samples.json"):
        assert json.loads((one / name).read_text()) == json.loads((other / name).read_text())
    for name in ("model.safetensors", "trainer.safetensors"):
        a, b = (load_file(out / "checkpoints" / f"step-{step}" / name) for out in (one, other))
        assert a.keys() == b.keys() and len(a) > 5
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    start(out)
    return out


def test_a_run_leaves_samples_and_its_best_checkpoint(whole: Path) -> None:
    scores = {int(row["step"]): row.get("held_out/pass@1") for row in read_metrics(whole)}
    assert [step for step, score in scores.items() if score is not None] == [4, 8]
    best = max((4, 8), key=lambda step: (scores[step], -step))
    assert json.loads((whole / "checkpoints/best.json").read_text()) == {"step": best, "value": scores[best]}
    assert (whole / "checkpoints/best").resolve().name == f"step-{best}"
    assert set(checkpoints(whole)) == {"best", "best.json", f"step-{best}", "step-8"}
    shown = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in shown] == list(range(1, 9))


# ------------------------------------------------------------------------------------------------ kill -9

COMMAND = [
    "train", "--resume", "auto", "--model", "tiny-random", "--task", "copy", "--steps", "40", "--prompts", "2",
    "--group-size", "4", "--max-new-tokens", "3", "--save-every", "3", "--keep-last", "2", "--eval-items", "4",
    "--eval-samples", "2", "--eval-every", "7", "--engine", "transformers", "--device", "cpu",
    "--set", "optimizer.lr=0.003", "optimizer.updates=2",
]  # fmt: skip
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(out: Path, before: str = "") -> subprocess.Popen[str]:
    """`etr train --resume auto --out ...` in a process of its own; `before`: code that runs in it first."""
    code = f"{before}\nimport sys\nfrom etr.__main__ import main\nsys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND, "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=Path(__file__).parent.parent,
    )  # fmt: skip


def newest(out: Path) -> int:
    return max([int(path.name[5:]) for path in out.glob("checkpoints/step-*")], default=0)


@pytest.mark.slow
def test_kill_9_at_random_moments_changes_no_bit(tmp_path: Path) -> None:
    """The same command line twice, killed each time: first it starts the run, then it goes on."""
    config = replace(CONFIG, steps=40, save_every=3, keep_last=2, eval_every=7)
    start(tmp_path / "whole", config)
    out, chance = tmp_path / "run", random.Random(0)
    for _ in range(2):
        process, reached, deadline = launch(out), newest(out), time.monotonic() + 120
        while newest(out) < reached + 6:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL and newest(out) < 40
    assert resumable.to_continue("auto", out) == out
    assert f"resuming {out} after step {newest(out)}" in resume(out)
    assert_same_run(tmp_path / "whole", out, 40)


# Dies at the second checkpoint: with half a file, before the rename, between the rename and the deletion of old ones.
DEATHS = {
    "half a file": ("checkpoint.save_file", "arguments[1].write_bytes(b'half')"),
    "before the rename": ("checkpoint._sync", "pass"),
    "before old ones go": ("keep.prune", "pass"),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", DEATHS)
def test_kill_9_during_a_checkpoint_changes_no_bit(tmp_path: Path, moment: str) -> None:
    name, last_deed = DEATHS[moment]
    death = f"""
import os, signal
from etr.llm import checkpoint, keep
calls, honest = [], {name}
def die(*arguments):
    calls.append(1)
    if len(calls) == 2:
        {last_deed}
        os.kill(os.getpid(), signal.SIGKILL)
    return honest(*arguments)
{name} = die
"""
    out = tmp_path / "run"
    process = launch(out, death)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == -signal.SIGKILL, text
    assert newest(out) == (6 if moment == "before old ones go" else 3)
    run.resume(out, 8, quietly, quietly)
    config = replace(CONFIG, save_every=3, keep_last=2, eval_every=7)
    start(tmp_path / "whole", config)
    assert_same_run(tmp_path / "whole", out)


# ------------------------------------------------------------------------------------------------ damage, full disk


def test_a_damaged_checkpoint_costs_steps_and_no_bit(tmp_path: Path, whole: Path) -> None:
    out = tmp_path / "run"
    start(out, replace(CONFIG, keep_last=3, steps=6))
    file = out / "checkpoints/step-6/trainer.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    said: list[str] = []
    run.resume(out, 8, said.append, quietly)
    assert "step-6' is damaged (trainer.safetensors has" in said[0] and "using step-4" in said[0]
    assert f"resuming {out} after step 4" in said
    assert_same_run(whole, out)


@pytest.fixture
def disk() -> Iterator[Callable[[int], None]]:
    """disk(n): from now on no file may grow beyond n bytes, as on a disk that is full; taken back at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_stops_the_run_at_the_next_checkpoint(
    tmp_path: Path, whole: Path, disk: Callable[[int], None]
) -> None:
    out = tmp_path / "run"

    def fill(step: int, steps: int, metrics: Any) -> None:
        if step == 5:
            disk((out / "metrics.jsonl").stat().st_size + 10)

    with (
        pytest.warns(RuntimeWarning, match="new rows wait in memory"),
        pytest.raises(InputError, match=r"cannot write '.*metrics.jsonl' \(.*\); its earlier rows are intact: free"),
    ):
        start(out, on_step=fill)
    assert [row["step"] for row in rows(out)] == ["1", "2", "3", "4", "5"]
    assert checkpoints(out)[-1] == "step-4"
    disk(resource.RLIM_INFINITY)
    resume(out)
    assert_same_run(whole, out)


def test_a_disk_that_is_full_for_a_while_costs_nothing(
    tmp_path: Path, whole: Path, disk: Callable[[int], None]
) -> None:
    out = tmp_path / "run"

    def fill(step: int, steps: int, metrics: Any) -> None:
        if step == 4:  # between the row of the step, which waits, and the checkpoint after it
            disk(resource.RLIM_INFINITY)
        if step == 3:
            disk((out / "metrics.jsonl").stat().st_size + 10)

    with pytest.warns(RuntimeWarning, match="new rows wait in memory"):
        start(out, on_step=fill)
    assert_same_run(whole, out)


# ------------------------------------------------------------------------------------------------ dead engine, faults


def breaks_at(step: int, name: str, honest: Callable[..., Any], deed: Callable[..., Any]) -> Callable[..., Any]:
    """A method of Trainer that does `deed` when its own step number comes up."""

    def method(self: Trainer, *arguments: Any) -> Any:
        return deed(self) if arguments[-1] == step else honest(self, *arguments)

    return method


def die(self: Any) -> None:
    raise EngineError("vllm died at version 4")


def test_an_engine_that_dies_while_sampling_loses_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(Trainer, "step", breaks_at(4, "step", Trainer.step, die))
    message = (
        rf"the rollout engine failed \(vllm died at version 4\); everything up to step 3 is saved: continue .* {out}"
    )
    with pytest.raises(InputError, match=message):
        start(out)
    monkeypatch.undo()
    assert checkpoints(out)[-1] == "step-3"
    resume(out)
    assert_same_run(whole, out)


def test_an_engine_that_dies_while_it_gets_weights_loses_nothing(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    class Dead:
        def __getattr__(self, name: str) -> Any:
            raise EngineError("vllm died at version 4")

    honest = Trainer.step

    def step(self: Trainer, number: int) -> dict[str, float]:
        if number == 5:
            monkeypatch.setattr(type(self.collector.engine), "sync", lambda *arguments: die(self))
        return honest(self, number)

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(InputError, match="everything up to step 5 is saved: continue with"):
        start(out)
    monkeypatch.undo()
    assert checkpoints(out)[-1] == "step-5" and len(rows(out)) == 5
    resume(out)
    whole_rows, own_rows = rows(whole), rows(out)
    for row in (*whole_rows, *own_rows):  # the dead engine's canary is missing in one row
        for name in [name for name in row if name.startswith("canary")]:
            del row[name]
    assert whole_rows == own_rows


def test_a_gradient_that_is_not_finite_is_not_applied(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, honest = tmp_path / "run", Optimizer.clip
    norms: list[torch.Tensor] = []

    def clip(self: Optimizer, limit: float | None) -> torch.Tensor:
        norms.append(honest(self, limit))
        return norms[-1] * (torch.nan if len(norms) == 6 else 1.0)  # two updates a step: the last one of step 3

    monkeypatch.setattr(Optimizer, "clip", clip)
    with pytest.raises(InputError, match=r"gradient is nan at step 3.*resume from the last checkpoint with a smaller"):
        start(out)
    monkeypatch.undo()
    assert checkpoints(out)[-1] == "step-2" and len(rows(out)) == 2
    resume(out)
    assert_same_run(whole, out)


@pytest.mark.parametrize(
    ("metric", "value", "sentence"),
    [
        ("kl", 7.0, "the KL of an update was above 1 nats per token for 3 steps, 7"),
        ("reward/timeouts", 5.0, "more than half of the 8 rewards of a step timed out for 3 steps, 5"),
    ],
)
def test_a_rule_stops_the_run_and_saves_no_bad_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str, value: float, sentence: str
) -> None:
    honest = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, n: {**honest(self, n), **({metric: value} if n > 3 else {})})
    with pytest.raises(InputError, match=f"{sentence} at step 6"):
        start(tmp_path / "run")
    assert checkpoints(tmp_path / "run") == ["step-2"]  # step 4 was the first of the bad ones
    assert len(rows(tmp_path / "run")) == 6  # for a person to look at
