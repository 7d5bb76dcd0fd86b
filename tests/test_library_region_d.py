"""Trust-region methods where batches are awkward: equal tokens, masked-out answers, forbidden tokens, far ratios."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from batches import gradient, region_of, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import InputError
from etr.laws import check_law
from etr.update import check_parts, split


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def prepared(objective: etr.Objective, batch: Batch) -> Batch:
    return objective.prepare(batch, objective.init_state((), torch.device("cpu")))[0]


# Equal tokens ---------------------------------------------------------------------------------------------------------

TIED: list[tuple[str, dict[str, Any]]] = [
    ("clip_cov", {"cov_low": 0.5, "cov_high": 0.6, "share": 0.3}),
    ("kl_cov", {"share": 0.5}),
    ("clip_v", {"threshold": 0.1, "most": 0.3}),
]


def arms() -> Batch:
    """A bandit's answers: five of one arm and prompt that are the same in all, and other ones."""
    chances = double([0.1, 0.6, 0.6, 0.3, 0.1, 0.1, 0.6, 0.1, 0.3, 0.1])
    wrong = [0, 4, 5, 7, 9]
    advantages = double([-1.0 if i in wrong else 0.9 - 0.12 * i for i in range(10)])
    full = double([0.6, 0.3, 0.1]).log().expand(10, 1, 3)
    log_probs = chances.log().unsqueeze(-1)
    entropy = -(full.exp() * full).sum(-1)
    mask = torch.ones_like(log_probs, dtype=torch.bool)
    return Batch(log_probs, log_probs, mask, advantages, full_log_probs=full, entropy=entropy)


@pytest.mark.parametrize(("name", "fields"), TIED)
def test_equal_tokens_are_treated_alike_in_any_order(name: str, fields: dict[str, Any]) -> None:
    """Three places among five equal tokens, behind two larger ones for KL-Cov: 3/5 for each, not the first three."""
    objective, batch = etr.get(name, **fields), arms()
    order = torch.tensor([9, 3, 7, 1, 0, 8, 2, 5, 6, 4])
    found, shuffled = (prepared(objective, b) for b in (batch, batch.rows(order)))
    column = "kl_cov_tied" if name == "kl_cov" else "advantages"
    values, others = (getattr(b, column, b.columns.get(column)) for b in (found, shuffled))
    torch.testing.assert_close(others, values[order], rtol=1e-12, atol=0.0)
    equal = values.flatten()[[0, 4, 5, 7, 9]].tolist()
    want = 3 / 5 if name == "kl_cov" else -1.0 * (1 - 3 / 5)
    assert equal == pytest.approx([want] * 5)
    moved = dataclasses.replace(found, log_probs=batch.log_probs + 0.1)
    again = dataclasses.replace(shuffled, log_probs=(batch.log_probs + 0.1)[order])
    torch.testing.assert_close(gradient(objective, again)[1], gradient(objective, moved)[1][order])


# Masked-out answers ---------------------------------------------------------------------------------------------------


def group(objective: etr.Objective, shift: list[float], rewards: list[float], out: list[int]) -> Batch:
    """Two groups, of four and of three; the answers `out` are masked out after the advantages were made."""
    given, ids = double(rewards), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    batch = tokens([[x, x] for x in shift], [0.0] * 7, rewards=given, group_ids=ids)
    mask = batch.response_mask.clone()
    mask[out] = False
    return dataclasses.replace(batch, response_mask=mask, advantages=objective.advantage(given, ids))


SHIFT = [0.3, -0.2, 0.5, 0.1, -0.4, 0.2, 0.3]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("name", ["real", "adpo"])
def test_groups_are_counted_without_masked_out_answers(name: str) -> None:
    """On-policy c = A; and the gradient is the derivative of the value, however many answers are masked out."""
    objective = etr.get(name)
    still = prepared(objective, group(objective, [0.0] * 7, REWARDS, [1, 4]))
    c, kept = etr.gradient_coefficient(objective, still), still.response_mask
    torch.testing.assert_close(c, torch.where(kept, still.token_advantages, 0.0))
    batch = group(objective, SHIFT, REWARDS, [1, 4])
    _, slope = gradient(objective, batch)
    step, ready = 1e-6, prepared(objective, batch)
    for row in (0, 2, 3, 5, 6):
        losses = []
        for sign in (1, -1):
            moved = ready.log_probs.clone()
            moved[row, 0] += sign * step
            losses.append(etr.policy_loss(objective, dataclasses.replace(ready, log_probs=moved)).loss.item())
        assert slope[row, 0].item() == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-6)
    assert not slope[[1, 4]].any()


def test_real_counts_by_hand() -> None:
    """Right, (wrong), right, wrong with the second masked out: G = 3, τ = ½: 6/3, 6/3 and −6/2; the other group −, +, +
    without its first: 4/3 each."""
    found = prepared(etr.get("real"), group(etr.get("real"), SHIFT, REWARDS, [1, 4])).advantages.tolist()
    assert found == pytest.approx([2.0, 0.0, 2.0, -3.0, 0.0, 4 / 3, 4 / 3])


def test_adpo_targets_of_the_answers_that_are_there_sum_to_one() -> None:
    """z = ±1 of all four; q = e²/(2e² + e⁻²) and e⁻²/(2e² + e⁻²) of the three; A = (3q − 1)/0.8, which sum to 0."""
    found = prepared(etr.get("adpo"), group(etr.get("adpo"), SHIFT, REWARDS, [1, 4])).advantages
    total = 2 * math.exp(2) + math.exp(-2)
    high, low = (3 * math.exp(2) / total - 1) / 0.8, (3 * math.exp(-2) / total - 1) / 0.8
    assert found[:4].tolist() == pytest.approx([high, 0.0, high, low])
    assert found.reshape(-1)[4:].sum().item() == pytest.approx(0.0, abs=1e-12)


# Forbidden tokens -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields"),
    [("trpo", {"kl": "full"}), ("grpo_guard", {"kind": "state"}), ("mdpo", {}), ("mdpo", {"kind": "tsallis"})],
)
def test_a_token_that_no_policy_can_take_does_no_harm(name: str, fields: dict[str, Any]) -> None:
    """log π = −∞ in both tables: the same loss and gradient as without that token."""
    old, new = double([0.5, 0.3, 0.2]).log(), double([0.4, 0.4, 0.2]).log()
    found = []
    for forbidden in (False, True):
        tables = [torch.cat([x, double([-math.inf])]) if forbidden else x for x in (old, new)]
        objective = etr.get(name, **fields)
        batch = tokens([[0.1]], [1.0], full_log_probs=tables[0].expand(1, 1, -1))
        batch = dataclasses.replace(prepared(objective, batch), full_log_probs=tables[1].expand(1, 1, -1))
        found.append(gradient(objective, batch))
    torch.testing.assert_close(found[1], found[0])
    assert found[0][0].isfinite()


# Bounds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dppo_masks_a_token_from_nowhere(name: str, dtype: torch.dtype) -> None:
    """μ = e^−40, π = ½: it has moved by ½, though e^20·μ = 2e-9 looks near; the other way round likewise."""
    for far, advantage, dropped in ((-40.0, 1.0, True), (-100.0, 1.0, True), (-40.0, -1.0, False)):
        old = torch.full((1, 1), far, dtype=dtype)
        now = torch.full_like(old, math.log(0.5))
        batch = Batch(now, old, old < 0, torch.tensor([advantage], dtype=dtype))
        c = etr.gradient_coefficient(etr.get(name, anchor="old"), batch)
        assert (c.item() == 0.0) == dropped
    near = Batch(
        torch.full((1, 1), -5.0, dtype=dtype), old := torch.full((1, 1), -100.0, dtype=dtype), old < 0, -old[0]
    )
    assert etr.gradient_coefficient(etr.get(name, anchor="old"), near).item() == 2000.0  # only to 0.007: C·A, r = e^95
    away = Batch(torch.full((1, 1), -40.0), torch.full((1, 1), -0.1), torch.ones(1, 1) > 0, torch.tensor([-1.0]))
    assert etr.gradient_coefficient(etr.get(name, anchor="old"), away).item() == 0.0


CAPS: list[tuple[dict[str, Any], float]] = [
    ({}, 10.0),
    ({"ratio_cap": 2.0}, 10.0),
    ({"ratio_cap": 2.0, "dual_clip": 3.0}, 3.0),
    ({"ratio_cap": 2.0, "dual_clip": None}, 2.0),
    ({"ratio_cap": 20.0}, 20.0),
]


@pytest.mark.parametrize(("fields", "high"), CAPS)
def test_dcpo_caps_its_upper_bound_at_the_larger_of_cap_and_dual_clip(fields: dict[str, Any], high: float) -> None:
    old = torch.full((1, 1), -12.0, dtype=torch.float64)  # ½ + ½·√(1 + 0.8·e^12) = 181
    batch = Batch(old, old, old < 0, double([1.0]))
    assert region_of(etr.get("dcpo_dynamic", **fields), batch).high.item() == high


def test_m2po_says_where_its_bounds_depend_on_what_is_in_the_loss() -> None:
    """Declared where the laws' batch shows it, and always kept whole by trainers."""
    objective = etr.get("m2po", budget=0.08)
    for law in ("finite_differences", "splitting_is_exact"):
        assert check_law(law, objective).outcome == "excepted"
        assert check_law(law, etr.get("m2po", budget=0.0)).outcome == "holds"
    for name in ("m2po", "bapo"):
        with pytest.raises(InputError, match="looks at a whole batch"):
            check_parts(etr.get(name), split(8, 2), 4)
    batch = tokens([[0.1, 0.2], [0.5, -1.0]], [1.0, 1.0])  # harmful: 0.1, 0.2 | 0.5
    objective = etr.get("m2po", eps_low=0.0, eps_high=0.0, budget=0.06)
    whole, part = (region_of(objective, b).high[0, 0].item() for b in (batch, batch.rows(slice(0, 1))))
    # 0.01 + 0.04 + τ² = 3·0.06 of all three; the first row alone is within the budget.
    assert whole == pytest.approx(math.exp(math.sqrt(0.13))) and part == math.inf


@pytest.mark.parametrize(
    ("name", "evidence"),
    [("agpo_feedback", "third-party"), ("capo", "third-party"), ("trpo", "reconstructed")],
)
def test_evidence_of_what_is_partly_ours(name: str, evidence: str) -> None:
    assert type(etr.get(name)).paper.evidence == evidence


@pytest.mark.parametrize("name", ["grpo_guard", "topr", "espo"])
def test_what_an_llm_can_supply(name: str) -> None:
    fields = {"vocab_size": 100} if name == "espo" else {}
    assert "full_log_probs" not in etr.get(name, **fields).needs
