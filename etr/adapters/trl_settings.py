"""What TRL can give a recipe, and what a recipe fixes in TRL's `GRPOConfig`. Needs no TRL."""

from __future__ import annotations

from typing import Any

from etr.errors import InputError
from etr.recipe import Recipe

# The first version whose trainer has every part that `etr.adapters.trl` builds on, and the last one tested; which of
# those between were run is in docs/hosts.md.
TESTED = ("1.7.1", "1.16.0")
ENGINE = ("rollout_log_probs",)  # only where vLLM samples: transformers' generation reports no log-probs here
SUPPLIES = (
    *("group", "rewards", "group_ids", "binary_rewards", "components", "tokens", "clusters", "turns"),
    *("entropy", "ref_log_probs", *ENGINE),
)
OPTIMIZERS = {"adam": "adamw_torch", "sgd": "sgd"}

# Arguments that shape TRL's own loss, advantages or weights. The recipe says all of that, so they keep TRL's defaults.
LOSS_ARGUMENTS = (
    *("loss_type", "importance_sampling_level", "epsilon", "epsilon_high", "delta", "beta", "use_bias_correction_kl"),
    *("scale_rewards", "multi_objective_aggregation", "top_entropy_quantile", "off_policy_mask_threshold"),
    *("sapo_temperature_neg", "sapo_temperature_pos", "vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg"),
    *("vespo_lambda_neg", "entropy_coef", "use_adaptive_entropy"),
)


def arguments(recipe: Recipe) -> dict[str, Any]:
    """The arguments of `GRPOConfig` that follow from the recipe; everything else is the user's.

    Raises InputError for a recipe that TRL cannot train.

    >>> from etr.recipe import load_recipe
    >>> arguments(load_recipe("grpo", {"optimizer.updates": 2}))["num_iterations"]
    2
    """
    check(recipe)
    settings = recipe.optimizer
    found = {
        "num_iterations": settings.updates,
        "optim": OPTIMIZERS[settings.method],
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm or 0.0,  # what TRL calls none
        "lr_scheduler_type": "constant",
        "disable_dropout": True,  # with dropout the ratio of two passes over the same weights is not 1
        # TRL then computes the old log-probs; the weights are the recipe's own, and TRL's are thrown away.
        "vllm_importance_sampling_correction": corrects(recipe),
    }
    if settings.lr is not None:
        found["learning_rate"] = settings.lr
    if "ref_log_probs" in recipe.objective.needs:
        found["beta"] = 1.0  # TRL has a reference model only then; its own penalty is never added
    return found


def check(recipe: Recipe) -> None:
    """Raise InputError when TRL lacks what the recipe needs, whatever the arguments."""
    recipe.objective.require(SUPPLIES, "TRL's GRPOTrainer")
    if recipe.optimizer.method == "sgd" and recipe.optimizer.lr is None:
        raise InputError("optimizer.method sgd has no learning rate here; set optimizer.lr, for example to 0.1")


def corrects(recipe: Recipe) -> bool:
    """Does the recipe itself correct for the difference between engine and trainer?"""
    return recipe.correction.active or recipe.correction.sequence_mask is not None
