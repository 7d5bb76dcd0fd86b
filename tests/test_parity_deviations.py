"""Nothing of verl and TRL is left out, and every declared difference is really there."""

from __future__ import annotations

import pytest
import torch
from peers import Case, Record, apart_from, changed, load, load_cases, on_kept, ours, records
from peers.deviations import DEVIATIONS, Deviation

import etr

CASES = load_cases()
TABLES = {"loss": ours.LOSSES, "advantage": ours.ADVANTAGES, "weights": ours.WEIGHTS}
EVERY = [record for kind in ("loss", "kl", "advantage", "weights") for record in records(kind)]


@pytest.mark.parametrize("peer", ["verl", "trl"])
def test_all_that_a_peer_registers_is_compared_or_said_to_be_missing(peer: str) -> None:
    stored = load(peer)
    for kind, table in TABLES.items():
        names = set(stored["settings"][kind])
        here = set(table[peer])
        missing = {name for name in names if f"{peer}-{kind}-{name}" in ours.NOT_HERE}
        assert names == here | missing and not here & missing, f"{peer}: {kind}"
        called = {word for name in names for word in _words(stored["settings"][kind][name], name)}
        assert set(stored["registered"][kind]) <= called, f"{peer} has more for {kind}"


def _words(settings: object, name: str) -> set[str]:
    """Every string in some settings, and the parts of their name."""
    if isinstance(settings, dict):
        return set().union(name.split("/"), *(_words(value, name) for value in settings.values()))
    if isinstance(settings, list):
        return set().union(*(_words(value, name) for value in settings))
    return {str(settings), *name.split("/")}


@pytest.mark.parametrize("name", sorted(ours.NOT_HERE))
def test_what_is_missing_is_still_in_the_records(name: str) -> None:
    assert any(str(record).startswith(f"{name}-") for record in EVERY)


@pytest.mark.parametrize("known", DEVIATIONS, ids=lambda known: known.records)
def test_every_declared_difference_is_still_there(known: Deviation) -> None:
    covered = [record for record in EVERY if known.covers(str(record))]
    assert covered, "no record left"
    assert known.peers and (known.change is None) != (known.tokens is None)
    assert any(differs(known, record, CASES[record.case]) for record in covered), f"no longer true: {known.reason}"


def differs(known: Deviation, record: Record, case: Case) -> bool:
    """Is the peer's result another than ours where the deviation says so?"""
    gradient = "gradient" in record.numbers
    theirs = record.tensor("gradient" if gradient else "values")
    found = on_kept(our_numbers(record, case), case, theirs)
    if known.tokens is None:
        return not torch.allclose(found, theirs, rtol=1e-4, atol=1e-9)
    apart = on_kept(known.tokens(case) & case["response_mask"], case, theirs)
    if bool(apart.any()):
        return not torch.allclose(found[apart], theirs[apart], rtol=1e-4, atol=1e-9)
    return False


def our_numbers(record: Record, case: Case) -> torch.Tensor:
    """Our gradient, advantages or weights, as they are."""
    if record.kind in ("advantage", "weights"):
        return getattr(ours, record.kind)(record.peer, record.name, case)
    leaf = case["log_probs"].clone().requires_grad_()
    if record.kind == "kl":
        value = etr.regularizers.kl(leaf, case["ref_log_probs"], kind=record.name.rstrip("+")).sum()
    else:
        value = ours.loss(record.peer, record.name, case, leaf)
    return torch.autograd.grad(value, leaf)[0]


def test_deviations_leave_most_tokens_to_compare() -> None:
    kept, apart = 0, 0
    for record in records("loss"):
        if not record.case.startswith("extreme") and record.name != "vespo/weighted":
            case = CASES[record.case]
            kept, apart = kept + int(case["response_mask"].sum()), apart + int(apart_from(record, case).sum())
    assert apart < kept / 50


def test_a_change_is_applied() -> None:
    record = next(r for r in records("advantage") if str(r) == "verl-advantage-grpo-wide-0")
    case = CASES["wide-0"]
    found = ours.advantage("verl", "grpo", case)
    assert not torch.equal(changed(found, record, case), found)
