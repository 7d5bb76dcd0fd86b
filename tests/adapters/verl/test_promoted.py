"""A promoted verl folder: bash reads its overrides, verl's own machinery takes them, and they mean what ours do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import torch
import verl.trainer.config
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights
from verl.utils.config import omega_conf_to_dataclass, validate_config

from etr.corrections import Correction
from etr.llm.config import TrainConfig
from etr.promote.data import write_data
from etr.promote.job import Job
from etr.promote.recipes import write_recipe
from etr.promote.terms import with_own
from etr.promote.texts import Own, write_settings, write_texts
from etr.promote.verl import translate
from etr.promote.verl_correction import rollout_correction
from etr.recipe import Recipe, load_recipe

HOUSE = Path(__file__).parent.parent.parent.parent
FOLDER = str(Path(verl.trainer.config.__file__).parent)
CONFIG = TrainConfig(
    model="/models/with a space, and more", task="arithmetic", prompts=8, group_size=4, max_new_tokens=32, seed=3,
    steps=7, dtype="bfloat16", lora_rank=4, eval_every=2,
)  # fmt: skip


def promoted(out: Path, recipe: Recipe, config: TrainConfig = CONFIG, **own: str) -> Job:
    job = Job(recipe, "verl", config, nodes=2, gpus=4, prompt_tokens=100, host_settings=own)
    translation = with_own(translate(job), own, "verl")
    out.mkdir()
    write_settings(out, job, translation, "auto")
    write_texts(out, job, translation, Own("auto"))
    return job


def composed(out: Path) -> DictConfig:
    """verl's whole configuration, from the words that bash makes of the folder's own file."""
    script = 'FOLDER=$PWD; source ./overrides.sh; printf "%s\\0" "${OVERRIDES[@]}"'
    words = subprocess.run(["bash", "-euc", script], cwd=out, capture_output=True, text=True, check=True).stdout
    with initialize_config_dir(config_dir=FOLDER, version_base=None):
        return compose("ppo_trainer", words.split("\0")[:-1])


def test_verl_takes_every_setting(tmp_path: Path) -> None:
    out = tmp_path / "a folder, with $signs"
    recipe = load_recipe("etr", {"micro": 0.3, "optimizer.updates": 3, "optimizer.max_grad_norm": 0.5})
    promoted(out, recipe, **{"actor_rollout_ref.rollout.gpu_memory_utilization": "0.7"})
    config = composed(out)
    assert config.data.train_files == f"{out}/data/train.parquet"
    assert config.actor_rollout_ref.model.path == CONFIG.model
    assert f"{out}/recipe.yaml" == config.ray_kwargs.ray_init.runtime_env.env_vars.ETR_RECIPE
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES == "etr.adapters.verl"
    assert config.actor_rollout_ref.rollout.gpu_memory_utilization == 0.7
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    assert actor.policy_loss.objective() == recipe.objective
    assert (actor.ppo_mini_batch_size, actor.ppo_epochs, config.data.train_batch_size) == (8, 3, 8)
    assert (actor.rollout_n, actor.optim.clip_grad, actor.optim.lr) == (4, 0.5, 5e-6)
    assert actor.fsdp_config.mixed_precision["param_dtype"] == "bf16"
    assert actor.policy_loss.record == f"{out}/first_batch.safetensors"
    omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    assert config.actor_rollout_ref.model.lora_alpha == 2 * config.actor_rollout_ref.model.lora_rank == 8
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.trainer.test_freq) == (2, 4, 2)


@pytest.mark.parametrize("name", ["etr", "grpo", "gspo", "dapo", "dr_grpo", "cispo", "etr_surprise"])
def test_the_whole_configuration_is_one_that_verl_validates(tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    promoted(out, load_recipe(name), TrainConfig(model="/models/x", prompts=8, group_size=4))
    config = composed(out)
    validate_config(config=config, use_reference_policy=False, use_critic=False)  # what main_ppo does before Ray


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["tis", "mis"])
def test_corrections_are_the_same_weights(kind: str, level: str) -> None:
    settings = Correction(kind=kind, level=level, low=0.6, high=1.7)
    terms = {term.key.rpartition(".")[2]: term.value for term in rollout_correction(settings)}
    torch.manual_seed(0)
    engine, noise = -torch.rand(6, 5), 0.4 * torch.randn(6, 5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]
    ours = settings.weights(engine + noise, engine, mask)
    theirs, _ = compute_rollout_correction_weights(
        noise * mask, mask, terms["rollout_is"], terms["rollout_is_threshold"]
    )
    assert ours is not None and torch.allclose(ours, theirs.where(mask, 0.0), rtol=1e-5)
    assert ours[mask].unique().numel() > 2


def test_verl_reads_the_questions(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    import datasets

    task = tmp_path / "sums.jsonl"
    task.write_text("".join(f'{{"prompt": "{a}+{a}=", "answer": "{2 * a}"}}\n' for a in range(9)))
    train, held_out = write_data(tmp_path, "parquet", task=str(task), held_out=1)
    rows = datasets.load_dataset("parquet", data_files=str(train), cache_dir=str(tmp_path / "cache"))["train"]
    first = rows[0]
    assert first["prompt"][0]["role"] == "user" and first["data_source"] == str(task)
    assert str(2 * int(first["prompt"][0]["content"][0])) == first["reward_model"]["ground_truth"]
    assert first["extra_info"]["scorer"] == "numeric" and first["extra_info"]["index"] == 0
    assert held_out.exists() and len(rows) < 9


def test_a_worker_knows_the_copied_class(tmp_path: Path) -> None:
    """As on a Ray worker: another folder, and nothing but the two variables of the runtime environment."""
    source = tmp_path / "gentle_worker.py"
    source.write_text(
        "from dataclasses import dataclass\n\nfrom etr.objectives.grpo import GRPO\n\n\n"
        "@dataclass(frozen=True)\nclass Gentle(GRPO):\n    care: float = 0.5\n"
    )
    out = tmp_path / "run"
    out.mkdir()
    write_recipe(out, load_recipe(f"{source}:Gentle", {"care": 0.25}))
    source.unlink()
    code = (
        "from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn\n"
        "from etr.adapters.verl_settings import named\n"
        "get_policy_loss_fn('etr/Gentle'), get_adv_estimator_fn('etr/Gentle')\n"
        "print(named('Gentle'))"
    )
    variables = {"VERL_USE_EXTERNAL_MODULES": "etr.adapters.verl", "ETR_RECIPE": str(out / "recipe.yaml")}
    environment = {**os.environ, "PYTHONPATH": str(HOUSE), "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Gentle(" in done.stdout and "care=0.25" in done.stdout
