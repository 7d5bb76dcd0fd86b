"""Does a run's configuration compute the objective it names? Asked when the configuration is made, before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etr.adapters.recovery import recovery
from etr.adapters.verl_names import LOSS, PREFIX, RECIPE, estimator, named
from etr.adapters.verl_settings import HOST, SUPPLIES, carries
from etr.errors import InputError
from etr.objective import Objective


def check(objective: Objective, host: Mapping[str, Any], binary_rewards: bool, columns: bool) -> None:
    """Raise InputError unless a run with these settings (`HOST`) computes this objective. Called before training."""
    missing = [key for key in HOST if key not in host]
    if missing:
        raise InputError(f"{LOSS}.host.{missing[0]} is not set; add +{LOSS}.host.{missing[0]}=${{{HOST[missing[0]]}}}")
    if carries(objective, binary_rewards) and not columns:
        raise InputError(
            f"objective '{objective.name}' needs statistics of the whole batch, or of rewards that are not 0 or 1; set "
            f"VERL_USE_EXTERNAL_MODULES=etr.adapters.verl.trainer and {LOSS}.columns=true, or declare 0/1 rewards by "
            f"{LOSS}.binary_rewards=true"
        )
    check_aggregation(objective, str(host["loss_agg_mode"]), host["loss_scale_factor"])
    check_penalties(objective, host, columns)
    own = str(host["adv_estimator"])
    if own == PREFIX + objective.name and not torch.equal(_advantages(named(objective.name)), _advantages(objective)):
        raise InputError(
            f"the advantages of '{own}' follow its fields, which differ from {LOSS}.fields; put the recipe into a file "
            f"and name it in {RECIPE}"
        )
    if objective.needs & SUPPLIES and binary_rewards and not own.startswith(PREFIX):
        raise InputError(
            f"algorithm.adv_estimator is {own}: verl's own estimators do not look whether rewards are 0 or 1, as "
            f"{LOSS}.binary_rewards says; give one of ours, such as {PREFIX}{objective.name} or {PREFIX}group_zscore"
        )
    if objective.needs & SUPPLIES and not columns:
        recovery(estimator(own), int(host["rollout_n"]))


def check_penalties(objective: Objective, host: Mapping[str, Any], columns: bool) -> None:
    """Raise InputError where verl would put another loss, other rewards or a second penalty beside the objective's.

    A bonus on the entropy cannot be a second one: no objective that reads the entropy runs in verl (`carries`).
    """
    if host["bypass_mode"]:
        raise InputError(
            f"{HOST['bypass_mode']} makes verl take a loss of its own for '{objective.name}'; set it to false"
        )
    if host["kl_in_reward"] and (columns or objective.needs & SUPPLIES):
        raise InputError(
            f"{HOST['kl_in_reward']} puts a penalty into the advantages which the rewards, as '{objective.name}' takes "
            "them, do not have; set it to false"
        )
    if host["use_kl_loss"] and host["kl_loss_coef"] and "ref_log_probs" in objective.needs:
        raise InputError(
            f"{HOST['kl_loss_coef']} is {host['kl_loss_coef']}, and '{objective.name}' compares with the reference "
            "itself; set it to 0 (use_kl_loss stays true, so that verl computes the reference)"
        )


def check_aggregation(objective: Objective, mode: str, scale: float | None) -> None:
    """Raise InputError unless verl averages as the objective does."""
    if mode != objective.aggregation:
        key = "actor_rollout_ref.actor.loss_agg_mode"
        raise InputError(f"{key} is {mode} but '{objective.name}' takes {objective.aggregation}; set {key} to that")
    if mode == "seq-mean-token-sum-norm":
        length = getattr(objective, "length", None)
        if scale is None or (length is not None and scale != length):
            key = "actor_rollout_ref.actor.loss_scale_factor"
            raise InputError(
                f"{key} is {scale}; give {length or 'the generation limit, the same for all micro-batches'}"
            )


def _advantages(objective: Objective) -> Tensor:
    """Of two groups of four, to tell the advantages of two objectives apart."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.7, 0.3, 1.0, 0.2])
    return objective.advantage(rewards, torch.arange(2).repeat_interleave(4))
