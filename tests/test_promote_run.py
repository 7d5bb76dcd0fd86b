"""Promoted folders start: docs/howto/promote.md is followed to the end, and scripts and data are what hosts expect."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml
from pages import fences
from scorecards import put

from etr.cli import main
from etr.llm.tasks import load_task
from etr.recipe import load_recipe
from etr.runs import read_metrics

PAGE = Path(__file__).parent.parent / "docs" / "howto" / "promote.md"
OBJECTIVE = """from dataclasses import dataclass

from etr.objectives.grpo import GRPO


@dataclass(frozen=True)
class Gentle(GRPO):
    care: float = 0.5

    def region(self, batch, log_ratio):
        region = super().region(batch, log_ratio)
        return region._replace(high=1 + self.care * (region.high - 1))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(words: list[str], folder: Path | None = None) -> str:
    """What a command prints; a command that fails is an error."""
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
def test_the_page_is_followed_to_the_end(here: Path) -> None:
    lines = [line for _, body in fences(PAGE) for line in body.splitlines()]
    validate, promote, start, replay = (shlex.split(line) for line in lines[:4])
    assert validate == ["etr", "validate", "etr"]
    put(load_recipe("etr"))  # what it writes after some minutes
    shell([sys.executable, "-m", *promote])
    out = shell(start)
    assert "as it was promoted" not in out and "step    2/2" in out
    run = here / "runs" / "promoted" / "run"
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2] and all(row["kl"] > 0 for row in rows)
    recorded = yaml.safe_load((run / "config.yaml").read_text())
    assert recorded["recipe"] == load_recipe("etr", {"optimizer.updates": 2}).as_dict()
    assert recorded["settings"]["task"] == "mod-arithmetic" and recorded["settings"]["steps"] == 2
    assert re.search(r"│ llm +│.+│ (bit-equal|agrees) +│", shell([sys.executable, "-m", *replay]))
    assert "is finished" in shell(start) and len(read_metrics(run)) == 2


@pytest.mark.slow
def test_own_code_trains_from_its_copy(here: Path) -> None:
    (here / "gentle_gate.py").write_text(OBJECTIVE)
    (here / "kind_gate.py").write_text(
        "def graded(prompt, completion, answer):\n    return float(len(completion) % 2)\n"
    )
    put(load_recipe("gentle_gate.py:Gentle"))
    words = shlex.split("--model tiny-random --task copy --steps 2 --eval-items 0 --max-new-tokens 2 --device cpu")
    words += ["--engine", "transformers", "--reward", "kind_gate.py:graded", "--out", "new"]
    assert main(["promote", "gentle_gate.py:Gentle", *words]) == 0
    for name in ("gentle_gate.py", "kind_gate.py"):
        (here / name).unlink()
    (here / "elsewhere").mkdir()
    shell([sys.executable, "-m", "etr", "start", str(here / "new")], here / "elsewhere")
    assert len(read_metrics(here / "new" / "run")) == 2
    assert (here / "new" / "run" / "first_batch.safetensors").exists()


@pytest.mark.parametrize("nodes", [1, 3])
def test_scripts_of_verl(here: Path, nodes: int) -> None:
    words = ["--to", "verl", "--model", "/m/x", "--nodes", str(nodes), "--gpus", "2", "--prompts", "6", "--out", "new"]
    assert main(["promote", "etr", *words, "--force", "--task", "arithmetic"]) == 0
    for script in ("run.sh", "ray.sh", "slurm.sh", "overrides.sh"):
        shell(["bash", "-n", f"new/{script}"])
        text = (here / "new" / script).read_text()
        assert "{{" not in text and "{%" not in text
        assert script == "overrides.sh" or "set -euo pipefail" in text
    assert f"#SBATCH --nodes={nodes}" in (here / "new" / "slurm.sh").read_text()
    readme = (here / "new" / "README.md").read_text()
    assert ("sbatch slurm.sh" in readme) == (nodes > 1) and "| optimizer.updates 4 |" in readme
    usage = subprocess.run(["bash", "new/ray.sh"], capture_output=True, text=True)
    assert usage.returncode == 2 and usage.stderr.startswith("usage: bash ray.sh head")


def test_run_sh_does_what_it_says_in_its_own_order(here: Path) -> None:
    """The interpreter is replaced by one that writes down how it was called."""
    assert main(shlex.split("promote etr --to verl --model /m/x --gpus 8 --prompts 8 --force --out new")) == 0
    spy = here / "spy"
    spy.write_text('#!/usr/bin/env bash\nprintf "%s\\n" "$VERL_USE_EXTERNAL_MODULES $ETR_RECIPE" "$@" "" >> "$LOG"\n')
    spy.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(spy), "LOG": str(here / "log")}
    subprocess.run(["bash", str(here / "new" / "run.sh")], cwd="/", env=environment, check=True)
    calls = [call.splitlines() for call in (here / "log").read_text().rstrip().split("\n\n")]
    assert [call[1:3] for call in calls] == [["-m", "etr"], ["prepare_data.py"], ["-m", "verl.trainer.main_ppo"]]
    assert {call[0] for call in calls} == {f"etr.adapters.verl {here}/new/recipe.yaml"}
    assert f"data.train_files='{here}/new/data/train.parquet'" in calls[2]
    assert "actor_rollout_ref.actor.ppo_epochs=4" in calls[2]


def test_the_data_of_verl_is_the_task(here: Path) -> None:
    assert (
        main(shlex.split("promote etr --to verl --model /m/x --gpus 8 --prompts 8 --force --eval-items 5 --out new"))
        == 0
    )
    shell([sys.executable, "prepare_data.py"], here / "new")
    train, held_out = (
        pyarrow.parquet.read_table(here / "new" / "data" / f"{name}.parquet").to_pylist()
        for name in ("train", "held_out")
    )
    task = load_task("arithmetic", split="train")
    assert [row["extra_info"]["question"] for row in train] == [item.question for item in task.items]
    assert [row["reward_model"]["ground_truth"] for row in train] == [item.answer for item in task.items]
    assert train[0]["prompt"] == [dict(message) for message in task.items[0].messages]
    assert {row["extra_info"]["scorer"] for row in train} == {task.scorer} and len(held_out) == 5
    assert not {row["extra_info"]["question"] for row in train} & {row["extra_info"]["question"] for row in held_out}


def test_the_data_of_trl_names_the_copied_reward(here: Path) -> None:
    (here / "kind_gate.py").write_text("def graded(prompt, completion, answer):\n    return 1.0\n")
    words = shlex.split("--to trl --model tiny-random --task copy --prompts 4 --eval-items 0 --force --out new")
    assert main(["promote", "etr", *words, "--reward", "kind_gate.py:graded"]) == 0
    shell([sys.executable, "prepare_data.py"], here / "new")
    rows = [json.loads(line) for line in (here / "new" / "data" / "train.jsonl").read_text().splitlines()]
    assert {row["scorer"] for row in rows} == {f"{here}/new/kind_gate.py:graded"}
    assert rows[0]["prompt"][0]["content"][0] == rows[0]["answer"]
    assert not (here / "new" / "data" / "held_out.jsonl").exists()
    settings = yaml.safe_load((here / "new" / "trl.yaml").read_text())
    assert settings["reward"] == "kind_gate.py:graded" and settings["arguments"]["num_iterations"] == 4
