"""Floor 1: from rewards `[*R, B]` to advantages `[*R, B]`. Never part of a loss; groups are whole here.

All rewards of a group equal: the advantages are exactly 0, the group teaches nothing. A group of one has no baseline
and is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etr.errors import InputError, unknown
from etr.groups import Groups, found

Estimator = Callable[[Tensor, Tensor], Tensor]


def group_zscore(rewards: Tensor, group_ids: Tensor, *, ddof: int = 0, eps: float = 0.0) -> Tensor:
    """A_i = (R_i − mean) / (std + eps) within the group (GRPO, 2402.03300).

    With the population std (ddof=0) mean A² = 1 in every mixed group, so |A| = 1 is the neutral size;
    TRL and verl use the sample std (ddof=1) with eps 1e-4 and 1e-6.

    >>> group_zscore(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4, dtype=torch.long))
    tensor([ 1., -1., -1.,  1.])
    """
    groups = _groups(rewards, group_ids)
    centred = rewards - groups.mean(rewards)
    std = (groups.sum(centred**2) / (groups.size - ddof)).sqrt()
    dead = groups.homogeneous(rewards) | (std == 0)  # the square of a tiny difference may vanish
    return torch.where(dead, 0.0, centred / torch.where(dead, 1.0, std + eps))


def group_center(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = R_i − mean of the group (Dr. GRPO, 2503.20783)."""
    groups = _groups(rewards, group_ids)
    return torch.where(groups.homogeneous(rewards), 0.0, rewards - groups.mean(rewards))


def leave_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """A_i = R_i − mean of the other responses (RLOO, 2402.14740): the baseline is independent of y_i, so unbiased."""
    groups = _groups(rewards, group_ids)
    return group_center(rewards, group_ids) * groups.size / (groups.size - 1)


def batch_whiten(rewards: Tensor, group_ids: Tensor, *, eps: float = 1e-6) -> Tensor:
    """A_i = (R_i − group mean) / (std over the whole batch + eps) (REINFORCE++-baseline, 2501.03262).

    Here every response counts once in the std; implementations that whiten over tokens count long ones more often.
    """
    centred = group_center(rewards, group_ids)
    return centred / (centred.std(-1, correction=0, keepdim=True) + eps)


ESTIMATORS: dict[str, Estimator] = {
    "group_zscore": group_zscore,
    "group_center": group_center,
    "leave_one_out": leave_one_out,
    "batch_whiten": batch_whiten,
}


def get_estimator(name: str) -> Estimator:
    """The estimator of that name; raises InputError naming the nearest one."""
    if name not in ESTIMATORS:
        raise InputError(unknown("advantage", name, ESTIMATORS))
    return ESTIMATORS[name]


def _groups(rewards: Tensor, group_ids: Tensor) -> Groups:
    groups = Groups(rewards, group_ids)
    if found(~torch.isfinite(rewards)):
        where = (~torch.isfinite(rewards)).nonzero()[0].tolist()
        raise InputError(f"reward at index {where} is {rewards[tuple(where)].item()}; mend the reward function")
    if found(groups.size < 2):
        where = (groups.size < 2).nonzero()[0].tolist()
        raise InputError(
            f"the response at index {where} is alone in its group; group-relative advantages need "
            "at least two responses to a prompt (raise group_size)"
        )
    return groups
