"""Statistics of the whole rollout batch as columns that travel with the rows to wherever the loss is computed.

the process that drives the run      statistics(objective, batch, uids)     one dict of columns, for every response
the workers                          ppo_loss(config, model_output, data)   verl's own, with the columns at hand
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from etr.adapters.verl.advantages import group_ids
from etr.adapters.verl.losses import carrying
from etr.batch import Batch
from etr.errors import InputError
from etr.groups import GroupStats, group_stats
from etr.loss import check_batch
from etr.objective import Objective

OWN = "etr_"  # begins the name of every column of ours in verl's batches
GROUP, PREPARED = f"{OWN}group_", f"{OWN}column_"
PLAIN = ("rewards", "group_ids")
# verl's names for what it may have of its own.
VERL = {"rollout_log_probs": "rollout_log_probs", "ref_log_prob": "ref_log_probs"}


def statistics(objective: Objective, batch: Mapping[str, Tensor], uids: Any) -> dict[str, Tensor]:
    """Columns `[B]` or `[B, T]` of a whole rollout batch, by the names under which they travel.

    batch: padded tensors `[B, T]` under verl's names: old_log_probs, response_mask, advantages, rm_scores, and
    rollout_log_probs and ref_log_prob where there are any; uids: of each response's prompt, `[B]`.
    Raises InputError for rewards outside [0, 1] and for inputs that the objective needs and verl did not make.
    """
    rewards, ids = batch["rm_scores"].sum(-1).float(), group_ids(uids)
    whole = Batch(
        log_probs=batch["old_log_probs"],
        old_log_probs=batch["old_log_probs"],
        response_mask=batch["response_mask"].bool(),
        advantages=batch["advantages"],
        group=group_stats(rewards, ids),
        rewards=rewards,
        group_ids=ids,
        **dict[str, Any]({ours: batch[name] for name, ours in VERL.items() if name in batch}),
    )
    check_batch(objective, whole)
    with torch.no_grad():  # statistics are fixed during the updates
        ready, _ = objective.prepare(whole, objective.init_state((), rewards.device))
    return of_batch(ready)


def of_batch(batch: Batch) -> dict[str, Tensor]:
    """The columns of a prepared batch by the names under which they travel. InputError for more than two dimensions."""
    found = {OWN + name: value for name in PLAIN if (value := getattr(batch, name)) is not None}
    found |= {name: value for name, ours in VERL.items() if (value := getattr(batch, ours)) is not None}
    found |= {GROUP + name: value for name, value in vars(batch.group).items()} if batch.group is not None else {}
    for name, value in batch.columns.items():
        if value.ndim > batch.log_probs.ndim:
            raise InputError(f"column '{name}' has {value.ndim} dimensions; verl carries up to {batch.log_probs.ndim}")
        found[PREPARED + name] = value
    return found


def collected(data: Any) -> dict[str, Any]:
    """Further fields of `etr.Batch` from a micro-batch of verl's, a TensorDict. InputError if there are no columns."""
    names = [name for name in data.keys() if name.startswith(OWN) or name in VERL]  # noqa: SIM118  (no mapping)
    if not any(name.startswith(OWN) for name in names):
        raise InputError(
            "this batch carries no columns; start verl with VERL_USE_EXTERNAL_MODULES=etr.adapters.verl.trainer "
            "and trainer.v1.trainer_mode=sync"
        )
    found = data.select(*names).to_padded_tensor()
    group = [found[GROUP + name] for name in ("mean", "var", "size") if GROUP + name in names]
    return {
        "group": GroupStats(*group) if group else None,
        **{name: found[OWN + name] for name in PLAIN if OWN + name in names},
        **{ours: found[name] for name, ours in VERL.items() if name in names},
        "columns": {name.removeprefix(PREPARED): found[name] for name in names if name.startswith(PREPARED)},
    }


def ppo_loss(config: Any, model_output: Any, data: Any, dp_group: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """verl's `ppo_loss`, whose registered policy loss also sees the columns. For `set_loss_fn` of verl's workers."""
    from verl.workers.utils import losses

    with carrying(collected(data)):
        found: tuple[Tensor, dict[str, Any]] = losses.ppo_loss(config, model_output, data, dp_group)
    return found
