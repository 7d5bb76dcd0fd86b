"""Dynamic sampling: groups whose rewards are all equal give no gradient, so others are drawn for them.

The idea is DAPO's (arXiv 2503.14476). Equality is exact: a tolerance would drop groups that differ by little, on
purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Group = TypeVar("Group")


def collect_mixed(
    draw: Callable[[int, int], Sequence[Group]], is_mixed: Callable[[Group], bool], wanted: int, refills: int
) -> tuple[list[Group], int]:
    """Up to `wanted` groups in the order in which they were drawn, mixed ones before others, and how many were drawn.

    `draw(round, count)` samples and grades `count` new groups; round is 0 at first and then 1, 2, ... up to `refills`.
    It must be a function of the step and the round alone, so that a resumed run draws the same. What no round could
    replace stays: the batch keeps its size, and its groups without signal count in the denominator as ever.
    """
    groups: list[Group] = []
    mixed: list[int] = []
    for attempt in range(refills + 1):
        missing = wanted - len(mixed)
        if missing == 0:
            break
        new = draw(attempt, missing)
        mixed += [len(groups) + i for i, group in enumerate(new) if is_mixed(group)]
        groups += new
    rest = [i for i in range(len(groups)) if i not in mixed]
    chosen = sorted([*mixed, *rest][:wanted])
    return [groups[i] for i in chosen], len(groups)
