"""Side by side with other projects: their inputs, what they return, what etr returns, and how the two are compared.

`cases` makes the inputs. `from_verl`, `from_trl` and `from_polgrad` call a peer's own code, live; `record` stores what
two of them return, because their pins exclude one another. `ours` says what etr calls the same, `deviations` where it
differs on purpose.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from peers.cases import make_case
from peers.deviations import DEVIATIONS, Deviation

Case = dict[str, Tensor]
HERE = Path(__file__).parent
KINDS = {"response_mask": torch.bool, "group_ids": torch.long}


class Record(NamedTuple):
    """What a peer returned for one case: numbers on the kept tokens row by row, or one per response."""

    peer: str
    kind: str  # loss, kl, advantage or weights
    name: str
    case: str
    numbers: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.peer}-{self.kind}-{self.name}-{self.case}"

    def tensor(self, what: str) -> Tensor:
        return torch.tensor(self.numbers[what], dtype=torch.float64)


def tensors(columns: dict[str, Any], dtype: torch.dtype = torch.float64) -> Case:
    """The mask as bool, ids as integers, everything else in `dtype`."""
    return {name: torch.tensor(values, dtype=KINDS.get(name, dtype)) for name, values in columns.items()}


@functools.cache
def new_case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """The case `kind-seed`, drawn when it is first asked for."""
    return tensors(make_case(name), dtype)


def load_cases(dtype: torch.dtype = torch.float64) -> dict[str, Case]:
    """The stored cases."""
    stored = json.loads((HERE / "cases.json").read_text())
    return {name: tensors(columns, dtype) for name, columns in stored.items()}


def load(peer: str) -> dict[str, Any]:
    """The stored file of a peer: its versions, what it registers, settings by name, and records."""
    loaded: dict[str, Any] = json.loads((HERE / f"{peer}.json").read_text())
    return loaded


def records(kind: str) -> Iterator[Record]:
    """All stored records of one kind."""
    for peer in ("verl", "trl"):
        for row in load(peer)["records"]:
            if row["kind"] == kind:
                numbers = {key: value for key, value in row.items() if key not in Record._fields}
                yield Record(peer, kind, row["name"], row["case"], numbers)


def by_name(kind: str, table: Mapping[str, Mapping[str, object]] | None = None) -> dict[str, list[Record]]:
    """The records of a kind, those of one name together; with a table those that it has."""
    found: dict[str, list[Record]] = {}
    for record in records(kind):
        if table is None or record.name in table[record.peer]:
            found.setdefault(f"{record.peer}-{kind}-{record.name}", []).append(record)
    return found


def deviations(record: Record) -> list[Deviation]:
    """The declared differences of a record."""
    return [known for known in DEVIATIONS if known.covers(str(record))]


def apart_from(record: Record, case: Case) -> Tensor:
    """Bool `[B, T]`: kept tokens on which a record is meant to differ."""
    apart = torch.zeros_like(case["response_mask"])
    for known in deviations(record):
        if known.tokens is not None:
            apart = apart | known.tokens(case)
    return apart & case["response_mask"]


def changed(ours: Tensor, record: Record, case: Case) -> Tensor:
    """Our result with the declared changes: what the peer should have."""
    for known in deviations(record):
        if known.change is not None:
            ours = known.change(ours, case)
    return ours


def assert_equal(ours: Tensor, theirs: Tensor, rtol: float, atol: float = 1e-15, what: object = "") -> None:
    """Every number within `rtol`; `atol` is for sums that cancel."""
    ours, theirs = ours.double().reshape(theirs.shape), theirs.double()
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol, msg=lambda text: f"{what}: {text}")


def on_kept(values: Tensor, case: Case, theirs: Tensor) -> Tensor:
    """`[B, T]` as records are: one number per response, or per kept token."""
    return values[:, 0] if len(theirs) == len(values) else values[case["response_mask"]]


def compare(ours: Tensor, theirs: Tensor, apart: Tensor, rtol: float, atol: float = 1e-15, what: object = "") -> None:
    """Equal wherever no difference is declared."""
    assert_equal(ours[~apart], theirs[~apart], rtol, atol, what)
