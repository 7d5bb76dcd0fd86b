"""Dynamic sampling: groups whose rewards are all equal give no gradient, so others are drawn for them.

The idea is DAPO's (arXiv 2503.14476). Equality is exact: a tolerance would drop groups that differ by little, on
purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Group = TypeVar("Group")


def mixed_groups(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Which responses belong to a group with unequal rewards, bool `[B]`, from rewards `[B]` and group ids `[B]`."""
    _, group = torch.unique(group_ids, return_inverse=True)
    count = int(group.max()) + 1 if len(group) else 0
    low = rewards.new_full((count,), torch.inf).scatter_reduce(0, group, rewards, "amin")
    high = rewards.new_full((count,), -torch.inf).scatter_reduce(0, group, rewards, "amax")
    return (low != high)[group]


def collect_mixed(
    draw: Callable[[int, int], Sequence[Group]], is_mixed: Callable[[Group], bool], wanted: int, refills: int
) -> tuple[list[Group], int]:
    """Up to `wanted` groups, mixed ones first, and the number of groups that were drawn.

    `draw(round, count)` samples and grades `count` new groups; round is 0 at first and then 1, 2, ... up to `refills`.
    It must be a function of the step and the round alone, so that a resumed run draws the same. What no round could
    replace stays: the batch keeps its size, and its groups without signal count in the denominator as ever.
    """
    mixed: list[Group] = []
    rest: list[Group] = []
    drawn = 0
    for attempt in range(refills + 1):
        missing = wanted - len(mixed)
        if missing == 0:
            break
        groups = list(draw(attempt, missing))
        drawn += len(groups)
        mixed += [group for group in groups if is_mixed(group)]
        rest += [group for group in groups if not is_mixed(group)]
    return [*mixed, *rest][:wanted], drawn
