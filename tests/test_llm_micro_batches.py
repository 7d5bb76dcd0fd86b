"""Micro-batches within a budget of tokens; for objectives that compare the rows of a group, never a part of one."""

from __future__ import annotations

import pytest

import etr
from etr.errors import InputError
from etr.llm.micro_batches import micro_batches
from etr.update import check_parts

LENGTHS = [5, 40, 3, 9, 9, 9, 1, 2, 3, 30, 30, 30]  # four groups of three rows


def tokens(rows: slice) -> int:
    return sum(LENGTHS[rows])


@pytest.mark.parametrize("budget", [1, 30, 60, 95, 1000])
def test_a_group_above_the_budget_stays_whole_where_its_rows_are_compared(budget: int) -> None:
    objective = etr.get("adpo")
    assert objective.undivided == "group"
    cut, whole = (micro_batches(12, 3, budget, tokens, whole_groups=on) for on in (False, True))
    for parts in (cut, whole):
        assert [i for part in parts for i in range(12)[part]] == list(range(12))
        assert all(tokens(part) <= budget or part.stop - part.start in (1, 3) for part in parts)
    check_parts(objective, whole, 3)
    if budget < 90:  # the last group
        with pytest.raises(InputError, match="micro-batches cut it"):
            check_parts(objective, cut, 3)
    else:
        assert cut == whole
