"""Floor 0: a group is the set of responses sampled for one prompt; its statistics are columns of the batch.

They are computed once per rollout batch, before shuffling and micro-batching, because no later step sees whole groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from etr.errors import InputError


@dataclass(frozen=True, eq=False)
class GroupStats:
    """Statistics of each response's own group, repeated for every member. All `[*R, B]`.

    `mean` is the success rate p, `var` the population variance (p(1−p) for 0/1 rewards, at most 1/4), both of rewards
    mapped to [0, 1] by their declared range; `size` is the group size G.
    """

    mean: Tensor
    var: Tensor
    size: Tensor

    def rows(self, index: slice | Tensor) -> GroupStats:
        """The same statistics for a subset of the responses."""
        return GroupStats(self.mean[..., index], self.var[..., index], self.size[..., index])

    def is_binary(self) -> Tensor:
        """Scalar bool tensor: were all rewards 0 or 1? For x in [0, 1], Var = p(1−p) holds exactly then."""
        return torch.isclose(self.var, self.mean * (1 - self.mean), rtol=0.0, atol=1e-5).all()


def group_stats(rewards: Tensor, group_ids: Tensor, reward_range: tuple[float, float] = (0.0, 1.0)) -> GroupStats:
    """Mean, population variance and size of each response's group.

    rewards: `[*R, B]`; group_ids: integers, `[B]` or `[*R, B]`, equal for responses to the same prompt.
    Raises InputError for an empty batch, other shapes, and rewards outside `reward_range` or not finite.

    >>> stats = group_stats(torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([7, 7, 7, 7]))
    >>> stats.mean[0].item(), stats.var[0].item(), stats.size[0].item()
    (0.25, 0.1875, 4.0)
    """
    low, high = reward_range
    if not low < high:
        raise InputError(f"reward_range is ({low:g}, {high:g}); give (low, high) with low < high")
    groups = Groups(rewards, group_ids)
    bad = ~((rewards >= low) & (rewards <= high))  # also true for NaN
    if found(bad):
        where = bad.nonzero()[0].tolist()
        raise InputError(
            f"reward {rewards[tuple(where)].item():g} at index {where} is outside [{low:g}, {high:g}]; "
            "mend the reward function or declare the range with reward_range=(low, high)"
        )
    unit = (rewards - low) / (high - low)
    mean = groups.mean(unit)
    # Equal rewards have variance 0 exactly, also where their mean is rounded.
    var = torch.where(groups.homogeneous(unit), 0.0, groups.mean((unit - mean) ** 2))
    return GroupStats(mean, var, groups.size)


def laid_out(groups: int, size: int) -> Tensor:
    """Ids 0 … 0 1 … 1 2 … 2 …, int64 `[groups·size]`, that carry their group size.

    Whoever gets them need not look at their values, which costs time, and which a compiler cannot do.
    """
    ids = torch.arange(groups).repeat_interleave(size)
    ids.group_size = size  # type: ignore[attr-defined]
    return ids


def found(bad: Tensor) -> bool:
    """Is any of `bad` true? False while a compiler traces, which has no values to look at."""
    return not torch.compiler.is_compiling() and bool(bad.any())


def unit_rewards(rewards: Tensor, why: str) -> Tensor:
    """The rewards, for those who read them as success rates: `why` begins the refusal of any outside [0, 1]."""
    bad = ~((rewards >= 0) & (rewards <= 1))  # also true for NaN
    if found(bad):
        where = bad.nonzero()[0].tolist()
        value = rewards[tuple(where)].item()
        raise InputError(
            f"{why}, but the reward at index {where} is {value:g}, outside [0, 1]; map the rewards to [0, 1]"
        )
    return rewards


class Groups:
    """Sums over groups for rewards `[*R, B]`, read back at each member's own place."""

    def __init__(self, rewards: Tensor, group_ids: Tensor) -> None:
        if rewards.ndim < 1 or rewards.shape[-1] == 0:
            raise InputError(f"empty batch: rewards have shape {tuple(rewards.shape)}; give at least one response")
        if rewards.dtype not in (torch.float32, torch.float64):
            raise InputError(f"rewards have dtype {rewards.dtype}; give single or double precision (rewards.float())")
        if group_ids.is_floating_point():
            raise InputError(f"group_ids have dtype {group_ids.dtype}; give integers, such as the prompt's number")
        if group_ids.shape not in (rewards.shape, rewards.shape[-1:]):
            raise InputError(
                f"group_ids have shape {tuple(group_ids.shape)} but rewards {tuple(rewards.shape)}; "
                "give one id per response"
            )
        self.regular = _regular(group_ids)
        self.ids = group_ids if self.regular else _dense(group_ids, rewards.shape[-1]).expand(rewards.shape)
        self.size = self.sum(torch.ones_like(rewards))

    def sum(self, values: Tensor) -> Tensor:
        if self.regular:
            blocks: Tensor = values.unflatten(-1, (-1, self.regular))
            return blocks.sum(-1, keepdim=True).expand_as(blocks).flatten(-2)
        totals = torch.zeros_like(values).scatter_add_(-1, self.ids, values)
        return totals.gather(-1, self.ids)

    def mean(self, values: Tensor) -> Tensor:
        return self.sum(values) / self.size

    def homogeneous(self, values: Tensor) -> Tensor:
        """True where all values of the group are equal, decided exactly (a computed variance may round to 1e-17)."""
        if self.regular:
            blocks: Tensor = values.unflatten(-1, (-1, self.regular))
            same: Tensor = (blocks == blocks[..., :1]).all(-1, keepdim=True)
            return same.expand(blocks.shape).flatten(-2)
        return self.least(values) == self.largest(values)

    def least(self, values: Tensor) -> Tensor:
        """The smallest value of the group."""
        if self.regular:
            blocks: Tensor = values.unflatten(-1, (-1, self.regular))
            return blocks.amin(-1, keepdim=True).expand(blocks.shape).flatten(-2)
        lowest = torch.full_like(values, torch.inf).scatter_reduce_(-1, self.ids, values, "amin")
        return lowest.gather(-1, self.ids)

    def largest(self, values: Tensor) -> Tensor:
        """The largest value of the group."""
        return -self.least(-values)


def _regular(group_ids: Tensor) -> int:
    """The group size G if the ids say 0 … 0 1 … 1 2 … 2 … in groups of G, as trainers lay them out; else 0.

    Such groups are rows of a reshaped tensor, several times faster than a scatter over any ids.
    """
    if known := getattr(group_ids, "group_size", 0):  # from `laid_out`
        return int(known)
    if group_ids.ndim != 1 or int(group_ids[-1]) < 0 or group_ids.shape[0] % (int(group_ids[-1]) + 1):
        return 0
    groups = int(group_ids[-1]) + 1
    regular = torch.arange(groups, device=group_ids.device).repeat_interleave(group_ids.shape[0] // groups)
    return group_ids.shape[0] // groups if bool((group_ids == regular).all()) else 0


def _dense(group_ids: Tensor, size: int) -> Tensor:
    """Ids usable as places 0..size-1; labels of any other value are renumbered."""
    ids = group_ids.long()
    if int(ids.min()) >= 0 and int(ids.max()) < size:
        return ids
    # Renumbering over all runs together could need more than `size` places, so each run gets its own numbers.
    flat = ids.reshape(-1, size)
    dense = torch.stack([torch.unique(row, return_inverse=True)[1] for row in flat])
    return dense.reshape(ids.shape)
