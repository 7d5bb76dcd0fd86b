"""Whole LLM runs on a tiny model: what a run leaves, that it learns, and that stopping it loses nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llm_runs import CONFIG, recipe, start, timeless
from safetensors.torch import load_file

from etr.errors import InputError
from etr.llm import run
from etr.llm.config import TrainConfig
from etr.llm.held_out import powers
from etr.llm.models import load_model
from etr.llm.rewards import Grades
from etr.llm.setup import pick_device
from etr.llm.train import Trainer
from etr.llm.watch import Watch
from etr.recipe import METHODS
from etr.runs import read_metrics


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step}" / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_run_leaves_metrics_samples_evaluation_and_a_loadable_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    start(out)
    rows = read_metrics(out)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for name in (
        "reward",
        "entropy",
        "kl",
        "zero_grad_frac",
        "truncated",
        "grad_norm",
        "group/homogeneous_frac",
        "entropy/change",
        "entropy/predicted",
        "entropy/change_clipped",
        "region/width/p0.3-0.5",
        "policy/effective_share",
    ):
        assert name in rows[0]
    results = json.loads((out / "eval.json").read_text())
    assert results["before"]["pass@1"]["low"] <= results["before"]["pass@1"]["estimate"]
    assert set(results["after"]) == {"pass@1", "pass@2", "truncated", "questions"}
    samples = json.loads((out / "samples.json").read_text())
    assert samples and set(samples[0]) == {"prompt", "answer", "before", "reward_before", "after", "reward_after"}
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-6"]
    again = load_model(str(out / "checkpoints" / "step-6"))
    reloaded, written = again.model.state_dict(), weights(out, 6)
    assert written and all(torch.equal(reloaded[name], value) for name, value in written.items())


@pytest.mark.slow
def test_the_reward_of_a_learnable_task_rises(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=60, prompts=8, group_size=16, eval_items=0, save_every=100)
    start(tmp_path / "run", config, recipe("etr", **{"optimizer.lr": 5e-3}))
    rewards = [row["reward"] for row in read_metrics(tmp_path / "run")]
    assert sum(rewards[-10:]) / 10 > sum(rewards[:10]) / 10 + 0.05


@pytest.mark.parametrize("method", METHODS)
def test_resume_continues_exactly(tmp_path: Path, method: str) -> None:
    with_recipe = recipe(**{"optimizer.method": method, "optimizer.lr": {"adam": 3e-3, "sgd": 0.3}[method]})
    start(tmp_path / "whole", with_recipe=with_recipe)
    start(tmp_path / "parts", replace(CONFIG, steps=4), with_recipe)
    run.resume(tmp_path / "parts", 6, lambda text: None, lambda *step: None)
    assert same(weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6))
    assert timeless(read_metrics(tmp_path / "whole")) == timeless(read_metrics(tmp_path / "parts"))
    assert json.loads((tmp_path / "parts" / "environment.json").read_text())["resumed"][0]["step"] == 5


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=2, eval_items=0)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        start(tmp_path / name, replace(config, seed=seed))
    a, b, c = (timeless(read_metrics(tmp_path / name)) for name in "abc")
    assert a == b != c


def test_micro_batches_do_not_change_the_update(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=1, eval_items=0)
    for parts in (1, 4):
        start(
            tmp_path / str(parts), config, recipe("dapo", **{"optimizer.micro_batches": parts, "optimizer.updates": 1})
        )
    one, four = (read_metrics(tmp_path / str(parts))[0] for parts in (1, 4))
    assert four["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    assert four["policy/objective"] == pytest.approx(one["policy/objective"], abs=1e-6)


def test_an_alarm_is_said_once_and_not_again_after_a_resume() -> None:
    rows = [{"step": float(step), "entropy": 1.0 if step <= 8 else 0.01, "reward": 0.5} for step in range(1, 15)]
    watch = Watch(vocab_size=100)
    said = [(step, sentence) for step, row in enumerate(rows, 1) for sentence in watch.add(step, row)]
    ((step, sentence),) = said
    assert 9 < step < 13  # not at the first low value, and not long after
    assert sentence == f"collapse at step {step}: entropy fell to 0.01 from 1 nats per token, with reward 0.5"
    assert Watch(100, rows).add(15, rows[-1]) == []
    assert Watch(100).add(1, rows[-1]) == []


def test_a_resumed_run_compares_with_what_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda self, n: {**honest(self, n), "entropy": 2.0 if n <= 5 else 0.01})
    said = start(tmp_path / "run", replace(CONFIG, eval_items=0, steps=5))
    assert not [text for text in said if "nats per token" in text]
    run.resume(tmp_path / "run", 10, said.append, lambda *step: None)
    (alarm,) = [text for text in said if "nats per token" in text]
    assert alarm.startswith("collapse at step ")


def launch(out: Path, steps: int = 400) -> subprocess.Popen[str]:
    """`etr train` in a process of its own, already past its first steps."""
    command = [sys.executable, "-m", "etr", "train", "--out", str(out), "--steps", str(steps), "--model", "tiny-random",
               "--task", "copy", "--prompts", "2", "--group-size", "2", "--max-new-tokens", "2", "--save-every", "5",
               "--eval-items", "0", "--set", "optimizer.updates=1"]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_usable_folder_and_a_resumable_checkpoint(tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "run"
    process = launch(out)
    process.send_signal(number)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 0, text
    rows = read_metrics(out)
    done = int(rows[-1]["step"])
    assert "finishing this step" in text and f"stopped after step {done}" in " ".join(text.split())
    assert (out / "checkpoints" / f"step-{done}").is_dir() and (out / "report.html").is_file()
    run.resume(out, done + 2, lambda text: None, lambda *step: None)
    assert [row["step"] for row in read_metrics(out)] == list(range(1, done + 3))


@pytest.mark.slow
def test_a_killed_run_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = launch(out)
    process.kill()
    process.communicate()
    step = max(int(p.name.removeprefix("step-")) for p in (out / "checkpoints").glob("step-*"))
    run.resume(out, step + 1, lambda text: None, lambda *step: None)
    assert [row["step"] for row in read_metrics(out)] == list(range(1, step + 2))


def test_all_rewards_equal_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "etr.llm.rewards.grader.Grader.grade", lambda self, items, texts: Grades([0.0] * len(items), {}, 0, 0)
    )
    said = start(tmp_path / "run", replace(CONFIG, eval_items=0))
    warned = [text for text in said if "all rewards of every group were equal" in text]
    assert len(warned) == 1 and "easier or harder task" in warned[0]
    assert all(row["group/homogeneous_frac"] == 1.0 for row in read_metrics(tmp_path / "run"))


def test_bad_runs_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="device 'nonsense' is not available"):
        start(out, replace(CONFIG, device="nonsense"))
    assert not out.exists()
    with pytest.raises(InputError, match="prompts is 0; give at least 1"):
        replace(CONFIG, prompts=0).check()
    with pytest.raises(InputError, match=r"unknown setting 'stepps'.*did you mean 'steps'"):
        TrainConfig.from_dict({"stepps": 1})


def test_resume_refuses_what_is_no_llm_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give the folder of a run"):
        run.resume(tmp_path, None, lambda text: None, lambda *step: None)
    (tmp_path / "config.yaml").write_text("kind: compare\n")
    with pytest.raises(InputError, match="holds no LLM run"):
        run.resume(tmp_path, None, lambda text: None, lambda *step: None)


def test_auto_picks_a_device_that_exists() -> None:
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_powers_are_the_k_of_pass_at_k() -> None:
    assert powers(1) == (1,) and powers(8) == (1, 2, 4, 8) and powers(10) == (1, 2, 4, 8)
