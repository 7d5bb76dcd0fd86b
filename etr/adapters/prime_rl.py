"""prime-rl: a recipe as its custom loss, one sequence at a time (read in code: prime-rl 559b447, August 2026).

    [trainer.loss]
    type = "custom"
    import_path = "etr.adapters.prime_rl.loss"
    kwargs = { recipe = "recipe.yaml", group_size = 8 }

prime-rl calls the function with one sequence, adds the results up and divides by the number of trainable tokens of the
whole step: so the aggregation is token-mean, and no other can be had. Its old policy is the rollout engine's. Of the
rewards it leaves r − mean(r) of the group. With rewards of 0 or 1 that says how many of `group_size` were right
(`etr.adapters.recovery`), from which the recipe's own advantages and group statistics follow.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from etr import advantages, diagnostics
from etr.adapters.recovery import Recovery, recovery
from etr.batch import Batch
from etr.errors import InputError, unknown
from etr.groups import GroupStats
from etr.loss import policy_loss, prepared
from etr.recipe import Recipe, load_recipe

SUPPLIES = ("group", "binary_rewards", "rewards", "rollout_log_probs", "ref_log_probs")
WITHOUT_REWARDS = ("rollout_log_probs", "ref_log_probs")
REWARDS = ("binary", "any")


class LossInputs(Protocol):
    """What prime-rl gives for a sequence, each `[seq]`: those of its `LossInputs` that are read here."""

    trainer_logprobs: Tensor
    inference_logprobs: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    loss_mask: Tensor
    loss_weights: Tensor | None


@dataclass(frozen=True)
class LossOutputs:
    """What prime-rl reads: a sum over the tokens of the sequence, to be divided by the tokens of the step; metrics."""

    loss: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Plan:
    """A recipe that prime-rl can train. own: the recipe's advantages of a failure and a success by k, `[G + 1, 2]`.

    Without `recovered` prime-rl's advantages are used as they are.
    """

    recipe: Recipe
    recovered: Recovery | None = None
    own: Tensor | None = None

    def score(self, given: Tensor, mask: Tensor) -> tuple[Tensor, GroupStats | None, Tensor | None]:
        """Advantages, group statistics and rewards `[1]` from prime-rl's advantages `[1, seq]`."""
        if self.recovered is None or self.own is None:
            return given, None, None
        group = self.recovered(given, mask)
        right = (torch.where(mask, given, 0.0).sum(-1) > 0).long()
        count = (group.mean * group.size).round().long()
        return self.own.to(given)[count, right], group, right.to(given.dtype)


def loss(
    inputs: LossInputs, *, recipe: str | os.PathLike[str], group_size: int | None = None, rewards: str = "binary"
) -> LossOutputs:
    """The recipe's loss of one sequence, summed over its tokens.

    recipe: what `etr.load_recipe` takes; group_size: answers to a prompt, G; rewards: "binary", 0 or 1, or "any", where
    prime-rl's own advantages stand in for the recipe's. Raises InputError, on the first call, for a recipe that
    prime-rl cannot train, and later for advantages that are not those of G rewards of 0 or 1.
    """
    plan = make_plan(os.fspath(recipe), group_size, rewards)
    objective = plan.recipe.objective
    log_probs, sampled, mask = (
        x.unsqueeze(0) for x in (inputs.trainer_logprobs, inputs.inference_logprobs, inputs.loss_mask)
    )
    scored, group, reward = plan.score(inputs.advantages.detach().unsqueeze(0), mask)  # data: no gradient is theirs
    batch = Batch(
        log_probs=log_probs,
        old_log_probs=sampled,
        rollout_log_probs=sampled,
        response_mask=mask,
        advantages=scored,
        group=group,
        rewards=reward,
        ref_log_probs=None if inputs.ref_logprobs is None else inputs.ref_logprobs.unsqueeze(0),
        weights=None if inputs.loss_weights is None else inputs.loss_weights.unsqueeze(0),
    )
    batch = prepared(objective, batch)
    out = policy_loss(objective, batch, 1.0)
    found = {**out.metrics, **diagnostics.clipped(objective, batch)}
    # Every sequence has every metric, 0 where nothing was counted, as in prime-rl's own losses: ranks join by name.
    metrics = {f"etr/{name}": (mean.sum / mean.count.clamp(min=1)).float() for name, mean in found.items()}
    return LossOutputs(out.loss, metrics)


@functools.cache
def make_plan(source: str, group_size: int | None, rewards: str) -> Plan:
    """The recipe with what its advantages are read back by. Raises InputError for what prime-rl cannot train."""
    if rewards not in REWARDS:
        raise InputError(unknown("rewards", rewards, REWARDS))
    recipe = load_recipe(source)
    check(recipe, rewards)
    if rewards == "any":
        return Plan(recipe)
    if group_size is None:
        raise InputError("group_size is missing; add to kwargs in [trainer.loss] how many answers each prompt gets")
    return Plan(recipe, recovery(advantages.group_center, group_size), table(recipe, group_size))


def check(recipe: Recipe, rewards: str) -> None:
    """Raise InputError unless one sequence and a global mean over tokens are enough for the recipe."""
    objective = recipe.objective
    objective.require(SUPPLIES if rewards == "binary" else WITHOUT_REWARDS, "prime-rl")
    state = objective.init_state((), torch.device("cpu"))
    if objective.scope == "batch" or objective.undivided or state:
        raise InputError(
            f"objective '{objective.name}' looks at more than one answer or step, and prime-rl shows the loss one "
            "sequence at a time; use verl, TRL or our own trainer"
        )
    if objective.aggregation != "token-mean":
        raise InputError(
            f"recipe '{recipe.name}' has aggregation {objective.aggregation}, and prime-rl divides by the tokens of "
            "the step; set aggregation: token-mean in the recipe"
        )
    if recipe.correction.active or recipe.correction.sequence_mask is not None:
        raise InputError(
            f"recipe '{recipe.name}' corrects for the rollout engine, whose log-probs are prime-rl's old policy "
            "already; leave the correction out"
        )


def table(recipe: Recipe, size: int) -> Tensor:
    """The recipe's own advantages of a failure and of a success among `size` answers with k successes, `[G + 1, 2]`.

    Raises InputError for advantages that other groups change, and where groups without signal have some: which of the
    two they are cannot be told.
    """
    found = torch.zeros(size + 1, 2, dtype=torch.float64)
    ids = torch.arange(2).repeat_interleave(size)
    for count in range(size + 1):
        rewards = torch.arange(size).lt(count).double()  # successes first
        scored = recipe.advantages(rewards, ids[:size])
        beside = recipe.advantages(torch.cat([rewards, torch.arange(size) % 2]), ids)[:size]
        if not torch.allclose(scored, beside):
            raise InputError(
                f"the advantages of recipe '{recipe.name}' look beyond the group, and prime-rl shows the loss one "
                "sequence at a time; use an estimator of single groups, such as group_zscore"
            )
        if count in (0, size) and bool((scored != 0).any()):
            raise InputError(
                f"the advantages of recipe '{recipe.name}' differ between groups that are all right and all wrong, "
                "which prime-rl gives the same; use an estimator that compares with the group, such as group_zscore"
            )
        if 0 < count < size:
            found[count] = torch.stack([scored[-1], scored[0]])
    return found
