"""The gradient of an optimiser step under TRL is that of our loss on the whole batch, however TRL cuts it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: make adapters")

import trl_tiny as tiny
from trl_captured import Captured, capture, expected

from etr.recipe import Recipe, load_recipe

NO_CLIPPING = {"optimizer.max_grad_norm": None}


def check(recipe: Recipe, everyone: list[Captured]) -> None:
    for place, step in enumerate(everyone[0].steps):
        loss, gradient = expected(recipe, everyone, place)
        for name, value in gradient.items():
            torch.testing.assert_close(step.gradient[name], value, rtol=1e-4, atol=2e-6, msg=f"{name}, step {place}")
        mean = sum(one.steps[place].loss for one in everyone) / len(everyone)
        assert mean == pytest.approx(loss, rel=1e-4, abs=2e-6)


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("name, fields", [("etr", {}), ("dapo", {}), ("gspo", {"eps_low": 0.2, "eps_high": 0.2})])
def test_accumulated_gradients_are_those_of_the_whole_batch(
    name: str, fields: dict[str, float], micro_batches: int
) -> None:
    """Three aggregations over ragged answers: a mean of the micro-batches' means would be another gradient."""
    recipe = load_recipe(name, {"optimizer.updates": 2, **NO_CLIPPING, **fields})
    found = capture(tiny.trainer(recipe, gradient_accumulation_steps=micro_batches, max_steps=4))
    assert [len(step.rows) for step in found.steps] == [micro_batches] * 4
    lengths = found.generations[0]["completion_mask"].sum(-1)
    assert lengths.min() < lengths.max()
    check(recipe, [found])
    assert any(value.abs().max() > 1e-3 for value in found.steps[1].gradient.values())


def test_several_steps_of_one_generation_have_denominators_of_their_own() -> None:
    """TRL's num_items_in_batch is of the whole generation; each step here has tokens of its own."""
    recipe = load_recipe("dapo", {"optimizer.updates": 1, **NO_CLIPPING})
    found = capture(tiny.trainer(recipe, gradient_accumulation_steps=2, steps_per_generation=4, max_steps=2))
    tokens = [sum(int(part["completion_mask"].sum()) for part in step.rows) for step in found.steps]
    assert tokens[0] != tokens[1]
    check(recipe, [found])


def two_processes(recipe: dict[str, Any], settings: dict[str, Any], folder: Path) -> list[Captured]:
    """The same run in two processes that average their gradients over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"recipe": recipe, "ddp_backend": "gloo", "folder": str(folder / "run"), **settings}
    started = []
    for rank in range(2):
        of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "trl_captured.py", "etr", json.dumps(given), str(folder / f"{rank}.pt")]
        environment = {**os.environ, **of_rank, **where}
        started.append(subprocess.Popen(command, cwd=Path(__file__).parent, env=environment, stderr=subprocess.PIPE))
    errors = [process.communicate(timeout=240)[1].decode()[-3000:] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_both_their_rows(tmp_path: Path) -> None:
    """Groups lie across the processes' border, answers are ragged, and each process pads to its own longest."""
    recipe = {"optimizer.updates": 2, **NO_CLIPPING}
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 3, "max_steps": 2}
    everyone = two_processes(recipe, settings, tmp_path)
    for name, value in everyone[0].steps[1].gradient.items():
        torch.testing.assert_close(everyone[1].steps[1].gradient[name], value)
    check(load_recipe("etr", recipe), everyone)
