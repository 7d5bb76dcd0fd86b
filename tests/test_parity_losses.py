"""etr against verl's and TRL's own code: losses, gradients and KL penalties on equal inputs, from stored records.

`make parity` makes the records anew (`peers/record.py`); `test_parity_live.py` has many more batches where a peer is
installed. Every difference that is meant is in `peers/deviations.py`, and checked to be still there.
"""

from __future__ import annotations

import pytest
import torch
from peers import Case, Record, apart_from, assert_equal, by_name, changed, compare, deviations, load_cases, ours
from peers.differences import log_ratio, mean_log_ratio
from torch import Tensor

import etr

CASES, SINGLE = load_cases(), load_cases(torch.float32)
# Relative tolerances: verl adds 1e-8 to lengths; stored numbers have ten digits; what TRL hands on in single precision.
RTOL = {"verl": 1e-7, "trl": 2e-9}
SINGLY = {"trl-sapo": "τ", "trl-sapo/parts": "τ", "trl-grpo/weighted": "the engine's log-probs"}
LOSSES = by_name("loss", ours.LOSSES)


def differentiate(record: Record, case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Our loss and its gradients by log-probs and entropies."""
    leaf, entropy = case["log_probs"].clone().requires_grad_(), case["entropy"].clone().requires_grad_()
    loss = ours.loss(record.peer, record.name, {**case, "entropy": entropy}, leaf)
    found = torch.autograd.grad(loss, (leaf, entropy), allow_unused=True, materialize_grads=True)
    return (loss.detach(), *found)


@pytest.mark.parametrize("records", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradient_equal_the_recorded_ones(records: list[Record]) -> None:
    for record in records:
        case = CASES[record.case]
        rtol = 1e-6 if f"{record.peer}-{record.name}" in SINGLY else RTOL[record.peer]
        loss, gradient, by_entropy = differentiate(record, case)
        mask, apart = case["response_mask"], apart_from(record, case)
        assert not gradient[~mask].any() and not by_entropy[~mask].any()
        compare(changed(gradient, record, case)[mask], record.tensor("gradient"), apart[mask], rtol, what=record)
        if "entropy_gradient" in record.numbers:
            assert_equal(by_entropy[mask], record.tensor("entropy_gradient"), rtol, what=record)
        else:
            assert not by_entropy.any()
        if not apart.any() and all(known.loss for known in deviations(record)):
            assert_equal(changed(loss, record, case), record.tensor("loss"), rtol, atol=rtol / 10, what=record)


@pytest.mark.parametrize("records", LOSSES.values(), ids=LOSSES)
def test_gradients_in_single_precision_equal_the_recorded_ones(records: list[Record]) -> None:
    for record in records:
        if record.case.startswith("extreme"):
            continue  # 60 nats leave too few digits
        case, theirs = SINGLE[record.case], record.tensor("gradient")
        mask, apart = case["response_mask"], apart_from(record, CASES[record.case])
        gradient = changed(differentiate(record, case)[1], record, case)[mask]
        assert gradient.dtype == torch.float32
        compare(gradient, theirs, apart[mask], rtol=1e-5, atol=1e-5 * theirs.abs().max().item(), what=record)


PENALTIES = by_name("kl")


@pytest.mark.parametrize("records", PENALTIES.values(), ids=PENALTIES)
def test_kl_penalties_equal_the_recorded_ones(records: list[Record]) -> None:
    for record in records:
        case = CASES[record.case]
        mask, apart = case["response_mask"], apart_from(record, case)
        leaf = case["log_probs"].clone().requires_grad_()
        kind, straight = record.name.rstrip("+"), record.name.endswith("+")  # verl's + has the gradient of k2
        values = etr.regularizers.kl(leaf, case["ref_log_probs"], kind=kind)
        by = etr.regularizers.kl(leaf, case["ref_log_probs"], kind="k2") if straight else values
        compare(values.detach()[mask], record.tensor("values"), apart[mask], 1e-9, 1e-12, what=record)
        gradient = torch.autograd.grad(by.sum(), leaf)[0]
        compare(gradient[mask], record.tensor("gradient"), apart[mask], 1e-9, 1e-12, what=record)


def test_the_cases_reach_every_branch_of_a_clip() -> None:
    case = CASES["wide-0"]
    ratio, sign = log_ratio(case).exp(), case["advantages"].sign().unsqueeze(-1)
    for a in (-1, 1):
        for branch in (ratio < 0.8, (ratio > 0.8) & (ratio < 1.2), ratio > 1.28):
            assert (branch & (sign == a) & case["response_mask"]).sum() >= 2
    far = log_ratio(CASES["far-0"]).exp()
    assert ((far > 3.0) & (CASES["far-0"]["advantages"][:, None] < 0) & CASES["far-0"]["response_mask"]).any()
    sequence = torch.cat([mean_log_ratio(CASES[name])[:, 0].exp() for name in ("tiny-0", "tiny-1")])
    for branch in (sequence < 1 - 3e-4, (sequence > 1 - 3e-4) & (sequence < 1 + 4e-4), sequence > 1 + 4e-4):
        assert branch.any()


def test_k3_never_pushes_away_from_the_reference_policy() -> None:
    case = CASES["extreme-0"]
    leaf = case["log_probs"].clone().requires_grad_()
    penalty = etr.regularizers.kl(leaf, case["ref_log_probs"], kind="k3")
    assert (torch.autograd.grad(penalty.sum(), leaf)[0] * log_ratio(case, "ref") >= 0).all()
