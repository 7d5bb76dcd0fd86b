"""A recorded batch through verl's own `ppo_loss`, with the registered loss: does verl compute the same?"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from etr.adapters.verl import columns
from etr.adapters.verl.installed import require
from etr.adapters.verl_names import PREFIX
from etr.adapters.verl_settings import carries
from etr.loss import evaluate
from etr.objective import Objective
from etr.recorded import Recorded, Replay


def replay(recorded: Recorded) -> Replay:
    """Loss, gradient `[B, T]` and region `[B, T]` of the recorded batch as verl computes them, on one rank.

    What verl recorded takes the same route again; other records take the one that reads the statistics from columns.
    Raises InputError when verl is not installed or cannot run this objective.
    """
    require()
    from verl.workers.utils import losses

    config = actor_config(recorded)
    batch, carried = recorded.batch, config.policy_loss.columns
    leaf = batch.log_probs.detach().clone().requires_grad_()
    function = columns.ppo_loss if carried else losses.ppo_loss
    loss, _ = function(config, {"log_probs": _model_output(leaf)}, tensor_dict(recorded, carried))
    (gradient,) = torch.autograd.grad(loss, leaf)
    region = evaluate(config.policy_loss.objective(), batch.clean())[1]
    low, high = (bound.expand_as(leaf) for bound in region)
    return Replay(loss.detach(), gradient, low, high)


def actor_config(recorded: Recorded) -> Any:
    """verl's actor configuration under which it makes this loss. Raises InputError if there is none."""
    from verl.workers.config import ActorConfig

    from etr.adapters.verl.config import ETRPolicyLossConfig

    objective, said = recorded.recipe.objective, recorded.settings if recorded.host == "verl" else {}
    batch = recorded.batch
    recoverable = bool(said.get("binary_rewards", False))
    size = 2 if batch.group is None else int(batch.group.size.max())
    host = {
        "loss_agg_mode": objective.aggregation,
        "loss_scale_factor": _scale(objective, batch.log_probs, said),
        "rollout_n": said.get("rollout_n", size),
        "adv_estimator": said.get("adv_estimator", PREFIX + (recorded.recipe.advantage or objective.name)),
        **dict.fromkeys(("kl_in_reward", "use_kl_loss", "bypass_mode"), False),
        "kl_loss_coef": 0.0,
    }
    carried = bool(said.get("columns", carries(objective, recoverable) or bool(batch.columns)))
    policy_loss = ETRPolicyLossConfig(
        loss_mode=PREFIX + objective.name,
        fields=dataclasses.asdict(objective),
        host=host,
        binary_rewards=recoverable,
        columns=carried,
    )
    return ActorConfig(
        strategy="fsdp",
        rollout_n=host["rollout_n"],
        ppo_micro_batch_size_per_gpu=batch.log_probs.shape[0],
        loss_agg_mode=objective.aggregation,
        loss_scale_factor=host["loss_scale_factor"],
        policy_loss=policy_loss,
    )


def tensor_dict(recorded: Recorded, carried: bool) -> Any:
    """The recorded batch as verl's workers hold a micro-batch, with prompts of one token; carried: with the columns."""
    from verl.utils import tensordict_utils

    batch = recorded.batch
    rows, length = batch.log_probs.shape
    tensors: dict[str, Tensor] = {
        "prompts": torch.ones(rows, 1, dtype=torch.long),
        "responses": torch.ones(rows, length, dtype=torch.long),
        "attention_mask": torch.ones(rows, 1 + length, dtype=torch.long),  # our mask, not verl's, says what is padding
        "response_mask": batch.response_mask,
        "old_log_probs": batch.old_log_probs,
        "advantages": batch.token_advantages.expand(rows, length).contiguous(),
    }
    if batch.weights is not None:
        tensors["rollout_is_weights"] = batch.weights
    if carried:
        tensors |= columns.of_batch(batch)
    scale = _scale(recorded.recipe.objective, batch.log_probs, recorded.settings) or 1
    whole = recorded.denominator.item()
    numbers = {"dp_size": 1, "batch_num_tokens": whole, "global_batch_size": whole / scale}
    return tensordict_utils.get_tensordict(tensors, numbers)


def _scale(objective: Objective, log_probs: Tensor, said: Any) -> Any:
    if objective.aggregation != "seq-mean-token-sum-norm":
        return None
    return said.get("loss_scale_factor") or getattr(objective, "length", None) or log_probs.shape[-1]


def _model_output(log_probs: Tensor) -> Tensor:
    """Log-probs of whole sequences one after the other, each of the next token, as a model without padding has them."""
    return torch.cat([log_probs, torch.zeros_like(log_probs[:, :1])], -1).flatten()
