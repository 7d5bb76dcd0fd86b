"""etr against verl's and TRL's own code: advantages and importance weights on equal inputs, from stored records."""

from __future__ import annotations

import pytest
from peers import Record, apart_from, by_name, changed, compare, load_cases, on_kept, ours

CASES = load_cases()
# Relative and absolute: verl adds small numbers to variances, TRL computes in single precision.
TOLERANCE = {"verl": (1e-6, 1e-7), "trl": (1e-5, 1e-6)}
RECORDS = by_name("advantage", ours.ADVANTAGES) | by_name("weights", ours.WEIGHTS)


@pytest.mark.parametrize("records", RECORDS.values(), ids=RECORDS)
def test_advantages_and_weights_equal_the_recorded_ones(records: list[Record]) -> None:
    for record in records:
        case, theirs = CASES[record.case], record.tensor("values")
        found = (ours.advantage if record.kind == "advantage" else ours.weights)(record.peer, record.name, case)
        found = changed(found, record, case)
        apart = on_kept(apart_from(record, case), case, theirs)
        compare(on_kept(found, case, theirs), theirs, apart, *TOLERANCE[record.peer], what=record)
