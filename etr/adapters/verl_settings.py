"""Floor 6: what verl can do for an objective, and the settings that make it do so. Imported without verl.

registry route   the loss and the advantages are registered by name; verl's own trainer runs unchanged
trainer route    the loss also needs statistics of the whole rollout batch: a trainer that carries them as columns
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings

import torch

from etr.adapters.verl_names import LOSS, PREFIX, named
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import Recipe

TESTED = ("0.8.0", "0.9.1")  # lowest and highest version that `make adapters-matrix` passed with
SUPPLIES = frozenset({"group", "binary_rewards"})  # read back from the advantages of 0/1 rewards; our estimators look
CARRIED = SUPPLIES | {"rewards", "group_ids", "rollout_log_probs", "ref_log_probs"}  # by the trainer route
MODES = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")  # verl's and ours
# What the run around the loss is set to: read by interpolation, so that it cannot be mistyped, and checked at start.
HOST = {
    "loss_agg_mode": "actor_rollout_ref.actor.loss_agg_mode",
    "loss_scale_factor": "actor_rollout_ref.actor.loss_scale_factor",
    "rollout_n": "actor_rollout_ref.rollout.n",
    "adv_estimator": "algorithm.adv_estimator",
    "kl_in_reward": "algorithm.use_kl_in_reward",
    "use_kl_loss": "actor_rollout_ref.actor.use_kl_loss",
    "kl_loss_coef": "actor_rollout_ref.actor.kl_loss_coef",
    "bypass_mode": "algorithm.rollout_correction.bypass_mode",
}


def check_version(found: str) -> None:
    """Raise InputError for a verl that is too old; warn about one that is newer than the tested ones."""
    lowest, highest = TESTED
    if _numbers(found) < _numbers(lowest):
        raise InputError(f"verl {found} is older than {lowest}, the oldest tested; pip install 'verl>={lowest}'")
    if _numbers(found) > _numbers(highest):
        message = f"verl {found} is newer than {highest}, the newest tested; run `etr replay` on a first short run"
        warnings.warn(message, stacklevel=2)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def carries(objective: Objective, binary_rewards: bool) -> bool:
    """Does this objective take the trainer route? Raises InputError where verl has no route for it."""
    reason = _impossible(objective)
    if reason:
        raise InputError(f"objective '{objective.name}' does not run in verl: {reason}")
    recoverable = SUPPLIES if binary_rewards else frozenset()
    if objective.needs <= recoverable and not (objective.columns and objective.scope == "batch"):
        return False
    objective.require(CARRIED if binary_rewards else CARRIED - {"binary_rewards"}, "verl")
    return True


def _impossible(objective: Objective) -> str:
    """Why verl cannot run it, whatever the route; empty if it can."""
    if objective.undivided:
        return f"its micro-batches would cut the {objective.undivided} that it compares; use etr train"
    if objective.aggregation not in MODES or type(objective).aggregate is not Objective.aggregate:
        return f"verl has no aggregation '{objective.aggregation}'; give one of {', '.join(MODES)}"
    if objective.init_state((), torch.device("cpu")):
        return "it has a state, which verl's checkpoints would lose; use etr train"
    return ""


def overrides(recipe: Recipe, *, binary_rewards: bool) -> list[str]:
    """Hydra overrides that put the loss, advantages and correction of a recipe into verl, to be quoted for a shell.

    binary_rewards: are all rewards 0 or 1? Raises InputError for what verl cannot do.
    """
    from etr.promote.verl_correction import rollout_correction  # promote imports this module

    loss = loss_overrides(recipe, binary_rewards=binary_rewards)
    terms = {term.key: term.value for term in rollout_correction(recipe.correction)}
    terms["actor_rollout_ref.rollout.calculate_log_probs"] = True  # of the engine; without them verl has no weights
    return [*loss, *(f"{key}={_hydra(value)}" for key, value in terms.items())]


def loss_overrides(recipe: Recipe, *, binary_rewards: bool) -> list[str]:
    """Those of `overrides` that are not about the correction between engine and trainer."""
    objective = recipe.objective
    columns = carries(objective, binary_rewards)
    name = recipe.advantage or objective.name
    fields = {f"+{LOSS}.fields.{key}": value for key, value in dataclasses.asdict(objective).items()}
    host = {f"+{LOSS}.host.{key}": f"${{{path}}}" for key, path in HOST.items()}
    reference = columns and "ref_log_probs" in objective.needs  # a weight of 0 makes verl compute them and add nothing
    settings = {
        f"{LOSS}._target_": "etr.adapters.verl.ETRPolicyLossConfig",
        f"{LOSS}.loss_mode": PREFIX + objective.name,
        **fields,
        f"+{LOSS}.binary_rewards": binary_rewards,
        f"+{LOSS}.columns": columns,
        **host,
        "actor_rollout_ref.actor.loss_agg_mode": objective.aggregation,
        "actor_rollout_ref.actor.loss_scale_factor": _length(objective),
        "actor_rollout_ref.actor.entropy_coeff": 0,
        "actor_rollout_ref.actor.use_kl_loss": reference,
        "actor_rollout_ref.actor.kl_loss_coef": 0,
        "algorithm.adv_estimator": PREFIX + name,
        "algorithm.use_kl_in_reward": False,
    }
    return [f"{key}={_hydra(value)}" for key, value in settings.items()]


def environment(recipe: Recipe, *, binary_rewards: bool) -> dict[str, str]:
    """Variables that every process of the run must have, those of Ray's workers included."""
    module = "etr.adapters.verl.trainer" if carries(recipe.objective, binary_rewards) else "etr.adapters.verl"
    return {"VERL_USE_EXTERNAL_MODULES": module}


def _length(objective: Objective) -> object:
    """L of seq-mean-token-sum-norm; verl's own default, the longest answer of each micro-batch, is no constant."""
    if objective.aggregation != "seq-mean-token-sum-norm":
        return None
    return getattr(objective, "length", None) or "${data.max_response_length}"


def _hydra(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def runnable(name: str) -> bool:
    """Has verl some route for the objective of that name, at its defaults or those of the recipe at hand?"""
    try:
        carries(named(name), binary_rewards=True)
    except InputError:
        return False
    return True
