"""A promoted TRL folder: the real GRPOConfig takes its arguments, and its own commands train one step."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("trl", reason="TRL is not installed (make adapters)")

from trl import GRPOConfig

from etr.llm.config import TrainConfig
from etr.promote.job import Job
from etr.promote.recipes import write_recipe
from etr.promote.texts import Own, write_settings, write_texts
from etr.promote.trl import check_types, translate
from etr.recipe import Recipe, load_recipe
from etr.recorded import FILE, load
from etr.replays.agreement import run_all
from etr.replays.inputs import check_inputs

HOUSE = Path(__file__).parent.parent.parent.parent
CONFIG = TrainConfig(
    model="tiny-random", task="copy", prompts=4, group_size=4, max_new_tokens=2, steps=1, device="cpu", eval_items=0,
    micro_batch_tokens=40,
)  # fmt: skip


def promoted(out: Path, recipe: Recipe, config: TrainConfig = CONFIG) -> Path:
    job = Job(recipe, "trl", config, prompt_tokens=8)
    translation = translate(job)
    out.mkdir()
    write_recipe(out, recipe)
    write_settings(out, job, translation, "auto")
    write_texts(out, job, translation, Own("auto"))
    return out


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("etr", {}),
        ("grpo", {"optimizer.updates": 2, "optimizer.max_grad_norm": None}),
        ("dapo", {"optimizer.method": "sgd", "optimizer.lr": 0.1}),
        ("grpo", {"beta": 0.1}),
    ],
)
def test_the_real_config_takes_the_arguments(tmp_path: Path, name: str, changes: dict[str, object]) -> None:
    recipe = load_recipe(name, changes)
    settings = yaml.safe_load((promoted(tmp_path / "run", recipe) / "trl.yaml").read_text())
    config = GRPOConfig(**settings["arguments"])
    assert config.generation_batch_size == 16 == config.num_generations * CONFIG.prompts
    assert config.per_device_train_batch_size * config.gradient_accumulation_steps == 16
    assert config.per_device_train_batch_size == 4  # of 8 + 2 tokens each, within 40
    assert config.num_iterations == recipe.optimizer.updates == config.max_steps
    assert (config.top_p, config.top_k, config.temperature) == (1.0, 0, 1.0)
    assert config.lr_scheduler_type == "constant" and config.warmup_steps == 0
    assert config.max_grad_norm == (recipe.optimizer.max_grad_norm or 0.0)


def test_its_script_trains(tmp_path: Path) -> None:
    """run.sh as it is, with the check of the start in this environment, and what `etr promote` itself writes."""
    for name in ("tyro", "rich", "gymnasium"):
        pytest.importorskip(name, reason=f"{name} of etr's own is not installed (make adapters)")
    from etr.promote.folder import promote

    folder = tmp_path / "it's a run"
    job = Job(load_recipe("etr", {"optimizer.updates": 2}), "trl", CONFIG, prompt_tokens=8,
              host_settings={"log_completions": "false", "run_name": "mine"})  # fmt: skip
    promote(job, folder, force=True)
    done = started(folder)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "is as it was promoted" in done.stdout
    assert (folder / "data" / "train.jsonl").read_text().count("\n") > 10
    recorded = load(folder / FILE)  # what TRL computed in this run
    outcomes, _ = run_all(recorded, ("toy", "llm", "trl"))
    assert recorded.host == "trl" and recorded.gradient.any()
    assert {outcome.verdict for outcome in outcomes} <= {"agrees", "bit-equal"} and len(outcomes) >= 3
    assert {check.what for check in check_inputs(recorded) if check.verdict == "same"} >= {"denominator", "advantages"}
    assert list((folder / "run").glob("checkpoint-*"))
    settings = folder / "trl.yaml"
    settings.write_text(settings.read_text().replace("log_completions: false", "log_completions: 'false'"))
    done = started(folder)
    assert done.returncode == 2 and "log_completions is 'false', and TRL wants bool" in " ".join(done.stderr.split())


def started(folder: Path) -> subprocess.CompletedProcess[str]:
    variables = {"PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment = {**os.environ, **variables, "PYTHON": sys.executable}
    return subprocess.run(["bash", str(folder / "run.sh")], cwd="/", capture_output=True, text=True, env=environment)


def test_all_arguments_have_the_types_of_the_real_config(tmp_path: Path) -> None:
    settings = yaml.safe_load((promoted(tmp_path / "run", load_recipe("etr")) / "trl.yaml").read_text())
    check_types(settings["arguments"], GRPOConfig)
