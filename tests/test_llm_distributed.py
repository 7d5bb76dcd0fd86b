"""Two processes on gloo are one process: the same data, denominators, metrics, gradients and checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from etr.batch import Mean
from etr.errors import InputError
from etr.llm.distributed import World, layers
from etr.runs import read_metrics

TIMES = ("seconds", "seconds/rollout", "seconds/update", "seconds/sync", "tokens_per_s")


def train(out: Path, processes: int, *options: str, script: tuple[str, ...] = ("-m", "etr", "train")) -> None:
    """`etr train` on the tiny model, alone or under torchrun."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    settings = ["--out", str(out), "--model", "tiny-random", "--task", "copy", "--steps", "3", "--prompts", "5",
                "--group-size", "4", "--max-new-tokens", "3", "--eval-items", "0", "--engine", "transformers",
                "--save-every", "3", *options]  # fmt: skip
    command = [sys.executable, *(launcher if processes > 1 else []), *script, *settings]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dapo", "grpo_wide"])
def test_two_processes_train_as_one(tmp_path: Path, objective: str) -> None:
    """Five prompts on two ranks: shares and micro-batches differ in size; `grpo_wide` has whole-batch statistics."""
    options = ("--recipe", objective, "--micro-batch-tokens", "40", "--set", "optimizer.lr=3e-3", "optimizer.updates=2")
    for processes in (1, 2):
        train(tmp_path / str(processes), processes, *options)
    one, two = (read_metrics(tmp_path / str(n)) for n in (1, 2))
    assert [row["step"] for row in two] == [1, 2, 3]
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() - set(TIMES) <= shared.keys()
        for name in alone.keys() - set(TIMES) - {"gradient/signal", "gradient/noise"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5, nan_ok=True), name
    a, b = (load_file(tmp_path / str(n) / "checkpoints" / "step-3" / "model.safetensors") for n in (1, 2))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_one(tmp_path: Path) -> None:
    options = ("--recipe", "grpo", "--set", "optimizer.lr=3e-3", "optimizer.updates=2")
    train(tmp_path / "whole", 1, "--steps", "5", *options)
    train(tmp_path / "parts", 2, *options)
    done = subprocess.run(
        [sys.executable, "-m", "etr", "train", "--resume", str(tmp_path / "parts"), "--extend-to", "5"],
        capture_output=True, text=True, timeout=150, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    whole, parts = (read_metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    for name in ("reward", "entropy", "grad_norm", "policy/objective"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name
    assert json.loads((tmp_path / "parts" / "checkpoints" / "step-5" / "trainer.json").read_text())["step"] == 5


def test_alone_nothing_is_shared_out() -> None:
    world = World.join(torch.device("cpu"))
    sums = {"x": Mean(torch.tensor(1.0), torch.tensor(2.0))}
    assert world.main and world.share(3) == slice(0, 3) and world.gather("x") == ["x"]
    assert world.idle([slice(0, 1)]) == 0 and world.total(sums)["x"].value.item() == 0.5
    rows = torch.ones(2, 3)
    assert world.gather_rows(rows) is rows and world.agree(True) and not world.agree(False)


def test_shares_cover_everything_once_and_never_are_empty() -> None:
    for size in range(1, 6):
        for count in range(size, 12):
            taken = [i for rank in range(size) for i in list(range(count))[World(rank, size).share(count)]]
            assert taken == list(range(count))
    with pytest.raises(InputError, match="3 prompts a step are fewer than 4 processes; raise prompts"):
        World(0, 4).share(3)


def test_only_a_model_with_layers_can_be_sharded() -> None:
    inner = torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(3)])
    model = torch.nn.ModuleDict({"few": torch.nn.ModuleList([torch.nn.Linear(1, 1)]), "many": inner})
    assert layers(model) is inner
    with pytest.raises(InputError, match="Linear has no list of layers to shard; train it in one process"):
        layers(torch.nn.Linear(1, 1))
