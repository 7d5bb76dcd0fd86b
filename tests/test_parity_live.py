"""etr against verl's and TRL's own code, live, on hundreds of fresh batches; skipped where neither is installed.

`make parity` runs this in an environment of each. Batches are ragged, with one-token responses, groups of equal
rewards, and ratios far outside every region.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import pytest
import torch
from peers import Case, Record, apart_from, assert_equal, changed, compare, deviations, new_case, on_kept, ours
from peers.cases import NOISE
from torch import Tensor

NONE = pytest.mark.skip(reason="neither verl nor TRL is in this environment: make parity")
DRAWS = [f"{kind}-{seed}" for seed in range(100, 130) for kind in NOISE]  # 210 batches; stored ones have other seeds
PRECISE = {torch.float64: 1e-6, torch.float32: 1e-5}
INSTALLED = [peer for peer in ours.LOSSES if importlib.util.find_spec(peer)]
SINGLY = ("grpo_vectorized", "gdpo")  # what verl computes in single precision, as TRL all that is no loss
NAMES = [
    pytest.param(peer, kind, name, id=f"{peer}-{kind}-{name}")
    for kind, table in (("loss", ours.LOSSES), ("advantage", ours.ADVANTAGES), ("weights", ours.WEIGHTS))
    for peer in INSTALLED
    for name in table[peer]
] or [pytest.param("", "", "", marks=NONE)]


def gradient(loss: Tensor, leaf: Tensor) -> tuple[Tensor, Tensor]:
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize(("peer", "kind", "name"), NAMES)
@pytest.mark.parametrize("dtype", PRECISE, ids=str)
def test_fresh_batches(peer: str, kind: str, name: str, dtype: torch.dtype) -> None:
    theirs = importlib.import_module(f"peers.from_{peer}")
    check = check_loss if kind == "loss" else check_values
    draws = DRAWS if kind == "loss" or peer == "verl" else DRAWS[:70]
    for draw in draws:
        if dtype == torch.float32 and draw.startswith("extreme"):
            continue  # 60 nats leave too few digits
        record, case = Record(peer, kind, name, draw, {}), new_case(draw, dtype)
        check(theirs, record, case, PRECISE[dtype])


def check_loss(theirs: Any, record: Record, case: Case, rtol: float) -> None:
    leaf, mask = case["log_probs"].clone().requires_grad_(), case["response_mask"]
    expected = theirs.loss(record.name, case, leaf)
    if not torch.isfinite(expected):
        return  # the mean over no response at all
    expected, slope = gradient(expected, leaf)
    found, ours_slope = gradient(ours.loss(record.peer, record.name, case, leaf), leaf)
    apart = apart_from(record, case)
    largest = slope[mask & ~apart].abs().max().item() if bool((mask & ~apart).any()) else 0.0
    compare(
        changed(ours_slope, record, case)[mask], slope[mask], apart[mask], rtol, rtol * largest / 10 + 1e-15, record
    )
    if not apart.any() and all(known.loss for known in deviations(record)):
        terms = (slope[mask] * case["log_probs"][mask]).abs().sum().item() + case["advantages"].abs().mean().item()
        assert_equal(changed(found, record, case), expected, rtol, rtol * terms, record)


def check_values(theirs: Any, record: Record, case: Case, rtol: float) -> None:
    function, our_function = getattr(theirs, record.kind), getattr(ours, record.kind)
    expected = function(record.name, case)
    found = changed(our_function(record.peer, record.name, case), record, case)
    expected = expected if expected.ndim == 1 else expected[case["response_mask"]]
    found, apart = (on_kept(x, case, expected) for x in (found, apart_from(record, case)))
    single = rtol > 1e-6 or record.peer == "trl" or record.name.startswith(SINGLY)
    compare(found, expected, apart, 1e-5 if single else rtol, 1e-5 if single else 1e-7, record)
