"""verl's own configuration machinery takes our overrides, and a run that would not be the recipe never starts."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

import numpy as np
import torch
import verl.trainer.config
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils.config import omega_conf_to_dataclass

import etr
from etr.adapters.verl import ETRPolicyLossConfig
from etr.adapters.verl_settings import overrides
from etr.errors import InputError
from etr.recipe import Recipe, load_recipe

FOLDER = str(Path(verl.trainer.config.__file__).parent)
RUN = [
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.rollout.n=8",
    "data.max_response_length=512",
]
LOSS = "actor_rollout_ref.actor.policy_loss"


def composed(recipe: Recipe, *more: str, binary: bool = True) -> DictConfig:
    """verl's whole configuration for this recipe, as `main_ppo` gets it."""
    with initialize_config_dir(config_dir=FOLDER, version_base=None):
        found = compose("ppo_trainer", [*RUN, *overrides(recipe, binary_rewards=binary), *more])
    return found


def actor(config: DictConfig):
    """The actor's configuration as a worker builds it, from a part whose interpolations are resolved."""
    OmegaConf.resolve(config.actor_rollout_ref.actor)
    OmegaConf.resolve(config.algorithm)
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


@pytest.mark.parametrize(
    "name", ["etr", "etr_surprise", "dr_grpo", "gspo", "bandpo", "dppo_tv", "spo_minimax", "adora"]
)
def test_the_recipe_arrives(name):
    recipe = load_recipe(name, {"eps_high": 3.1e-4} if hasattr(etr.get(name), "eps_high") else {})
    found = actor(composed(recipe))
    assert isinstance(found.policy_loss, ETRPolicyLossConfig)
    assert found.policy_loss.objective() == recipe.objective
    assert found.loss_agg_mode == recipe.objective.aggregation
    assert found.policy_loss.host["rollout_n"] == 8 == found.rollout_n
    assert found.policy_loss.host["adv_estimator"] == f"etr/{name}"


def test_settings_that_differ_between_objectives():
    dr_grpo = composed(load_recipe("dr_grpo")).actor_rollout_ref.actor
    assert dr_grpo.loss_scale_factor == 512  # the generation limit, the same for all micro-batches
    assert composed(load_recipe("dr_grpo", {"length": 99})).actor_rollout_ref.actor.loss_scale_factor == 99
    assert composed(load_recipe("etr")).actor_rollout_ref.actor.policy_loss.columns is False
    assert composed(load_recipe("etr"), binary=False).actor_rollout_ref.actor.policy_loss.columns is True
    with_reference = composed(load_recipe("grpo", {"beta": 0.1})).actor_rollout_ref.actor
    assert with_reference.use_kl_loss and with_reference.kl_loss_coef == 0 and with_reference.policy_loss.columns
    named = composed(load_recipe("grpo", {"advantage": "leave_one_out"}))
    assert named.algorithm.adv_estimator == "etr/leave_one_out"


WRONG = {
    "unknown field of objective 'etr' .*did you mean 'micro'": [f"+{LOSS}.fields.mikro=0.5"],
    r"ETR.micro is": [f"{LOSS}.fields.micro=fast"],
    "loss_agg_mode is token-mean but 'etr' takes seq-mean-token-mean": [
        "actor_rollout_ref.actor.loss_agg_mode=token-mean"
    ],
    "a group has 1 responses": ["actor_rollout_ref.rollout.n=1"],
    "the estimator looks beyond the group": ["algorithm.adv_estimator=etr/batch_whiten"],
    "use_kl_in_reward puts a penalty into the advantages": ["algorithm.use_kl_in_reward=true"],
    "bypass_mode makes verl take a loss of its own": ["algorithm.rollout_correction.bypass_mode=true"],
    "adv_estimator is grpo: verl's own estimators do not look": ["algorithm.adv_estimator=grpo"],
    "unknown algorithm.adv_estimator 'etr/gae'": ["algorithm.adv_estimator=etr/gae"],
    "or declare 0/1 rewards": [f"{LOSS}.binary_rewards=false"],
    r"policy_loss.host.rollout_n is not set; add": [f"~{LOSS}.host.rollout_n"],
    "loss_mode is vanilla": [f"{LOSS}.loss_mode=vanilla"],
    "unknown objective 'etrr'": [f"{LOSS}.loss_mode=etr/etrr"],
}


@pytest.mark.parametrize(("message", "lines"), WRONG.items())
def test_a_run_that_would_not_be_the_recipe_is_refused_at_start(message, lines):
    with pytest.raises(InstantiationException, match=message):
        actor(composed(load_recipe("etr"), *lines))


def test_a_length_that_differs_is_refused():
    with pytest.raises(InstantiationException, match=r"loss_scale_factor is 512; give 99"):
        config = composed(load_recipe("dr_grpo", {"length": 99}), "actor_rollout_ref.actor.loss_scale_factor=512")
        actor(config)


def test_another_estimator_of_ours_is_read_back_too():
    found = actor(composed(load_recipe("etr"), "algorithm.adv_estimator=etr/group_center")).policy_loss.recovery()
    assert found.size == 8
    assert found.advantages.abs().max() == pytest.approx(7 / 8)


def test_a_penalty_is_not_put_in_twice():
    twice = load_recipe("grpo", {"beta": 0.1})
    for line in ("actor_rollout_ref.actor.kl_loss_coef=0.01", "algorithm.use_kl_in_reward=true"):
        with pytest.raises(InstantiationException, match=r"kl_loss_coef is 0\.01|use_kl_in_reward puts a penalty"):
            actor(composed(twice, line))
    lines = ["actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.01"]
    for more in (lines, ["algorithm.use_kl_in_reward=true"]):  # verl's own, once
        assert actor(composed(load_recipe("grpo"), *more)).policy_loss.columns is False


@pytest.mark.parametrize(
    ("fields", "threshold"),
    [
        ({"kind": "tis", "high": 1.5}, 1.5),
        ({"kind": "mis", "level": "sequence", "low": 0.5, "high": 2.0}, "0.5_2.0"),
        ({"kind": "none"}, 2.0),
    ],
)
def test_the_correction_arrives_with_the_overrides(fields, threshold):
    recipe = load_recipe("grpo", {f"correction.{key}": value for key, value in fields.items()})
    config = composed(recipe)
    found = config.algorithm.rollout_correction
    assert found.rollout_is == (None if fields["kind"] == "none" else fields.get("level", "token"))
    assert found.rollout_is_threshold == threshold and config.actor_rollout_ref.rollout.calculate_log_probs
    lines = [line.partition("=")[0] for line in overrides(recipe, binary_rewards=True)]
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("rewards", [(0.0, 0.5), (0.0, 2.0), (-1.0, 1.0)])
def test_rewards_that_a_z_score_cannot_tell_from_binary_ones_stop_the_first_step(rewards):
    def advantages(config, low, high):
        scores = torch.tensor([[low], [high], [low], [low]])
        tensors = {"token_level_rewards": scores, "response_mask": torch.ones(4, 1)}
        data = DataProto.from_dict(tensors, {"uid": np.array(["a"] * 4, dtype=object)})
        return compute_advantage(data, config.algorithm.adv_estimator, config=config.algorithm).batch["advantages"]

    config = composed(load_recipe("etr"))
    with pytest.raises(InputError, match=r"binary_rewards is true, but a reward is "):
        advantages(config, *rewards)
    assert advantages(config, 0.0, 1.0).abs().max() > 0
    assert advantages(composed(load_recipe("etr"), binary=False), *rewards).abs().max() > 0


def test_advantages_of_other_fields_than_the_loss_are_refused():
    with pytest.raises(InstantiationException, match=r"put the recipe into a file and name it in ETR_RECIPE"):
        actor(composed(load_recipe("passk", {"k": 3})))
