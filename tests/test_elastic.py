"""The elastic objectives: known values, the properties their construction promises, and the control for width."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean
from typing import Any

import pytest
import torch
from batches import bandit, gradient, region_of, rewards_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import etr
from etr.batch import Batch
from etr.objective import Objective

ELASTIC = ["etr", "etr_implicit", "etr_proportional"]
NO_CLAMP = {"eps_min": 0.0, "eps_max": 1.0}


def half_widths(objective: Objective, batch: Batch) -> tuple[list[float], list[float]]:
    """ε_low and ε_high of every response."""
    low, high = region_of(objective, batch)
    return (1 - low[..., 0]).flatten().tolist(), (high[..., 0] - 1).flatten().tolist()


def widths(objective: Objective, *correct: int, size: int = 16) -> list[float]:
    """ε of every response when both bounds have the same."""
    low, high = half_widths(objective, bandit(objective, *rewards_of(*correct, size=size)))
    assert low == pytest.approx(high, abs=1e-15)
    return low


def etr_by_hand(p: float, right: bool, eps: float = 0.2, micro: float = 0.5, macro: float = 0.5) -> float:
    """ε of one response in plain Python; |A| = √((1−p)/p) for right and √(p/(1−p)) for wrong ones."""
    size = math.sqrt((1 - p) / p) if right else math.sqrt(p / (1 - p))
    scale = (1 + micro * math.tanh(size - 1)) * (1 + macro * (4 * p * (1 - p) - 0.5))
    return min(max(eps * scale, 0.05), 0.5)


def with_signal(advantages: Tensor, var: Tensor | float) -> Batch:
    """One token per response, with advantages and group variance chosen freely."""
    rows = advantages.shape if advantages.ndim == 1 else advantages.shape[:-1]
    zero = torch.zeros(*rows, 1 if advantages.ndim == 1 else advantages.shape[-1], dtype=torch.float64)
    spread = torch.as_tensor(var, dtype=torch.float64).expand(rows)
    group = etr.GroupStats(spread, spread, torch.full(rows, 2.0, dtype=torch.float64))
    return Batch(zero - 2, zero - 2, torch.ones_like(zero, dtype=torch.bool), advantages, group)


def test_etr_known_values() -> None:
    even = widths(etr.get("etr"), 8)  # p = 1/2: |A| = 1, 4v = 1 -> 0.2 · 1 · (1 + 0.5·0.5) = 0.25
    assert even == pytest.approx([0.25] * 16, rel=1e-12)
    right, *wrong = widths(etr.get("etr"), 1)  # p = 1/16
    # right: |A| = √15, 0.2·(1 + 0.5·tanh(2.873))·(1 + 0.5·(0.2344 − 0.5)) = 0.2·1.4968·0.8672
    # wrong: |A| = 1/√15, 0.2·(1 + 0.5·tanh(−0.7418))·0.8672 = 0.2·0.6848·0.8672
    assert right == pytest.approx(0.26, abs=0.005)
    assert wrong == pytest.approx([0.12] * 15, abs=0.005)
    assert (right, wrong[0]) == pytest.approx((etr_by_hand(1 / 16, True), etr_by_hand(1 / 16, False)), rel=1e-12)


@pytest.mark.parametrize(
    "fields", [{}, {"micro": 1.0}, {"macro": 0.0}, {"micro": 0.0, "macro": 1.5}, {"micro": 1.0, "macro": 2.0}]
)
def test_etr_equals_plain_python_at_every_success_rate(fields: dict[str, float]) -> None:
    for k in range(1, 16):
        found = widths(etr.get("etr", **fields), k)
        want = [etr_by_hand(k / 16, right, **fields) for right in [True] * k + [False] * (16 - k)]
        assert found == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ELASTIC)
def test_the_two_bounds_are_separate_and_clamped(name: str) -> None:
    objective = etr.get(name, eps_low=0.1, eps_high=0.3, **NO_CLAMP)
    batch = bandit(objective, *rewards_of(8, size=16))
    unit = 1.25 if name == "etr" else 1.0  # at p = 1/2: |A| = 1 and 2√v = 1
    low, high = half_widths(objective, batch)
    assert low == pytest.approx([0.1 * unit] * 16, rel=1e-12)
    assert high == pytest.approx([0.3 * unit] * 16, rel=1e-12)
    low, high = half_widths(etr.get(name, eps_low=0.1, eps_high=0.3, eps_min=0.15, eps_max=0.25), batch)
    assert low == pytest.approx([0.15] * 16) and high == pytest.approx([0.25] * 16)


@given(st.lists(st.floats(0.0, 6.0), min_size=2, max_size=8), st.floats(0.0, 0.25), st.sampled_from(ELASTIC))
def test_width_never_falls_with_the_size_of_the_advantage(sizes: list[float], var: float, name: str) -> None:
    signed = [a if i % 2 else -a for i, a in enumerate(sorted(sizes))]
    low, high = half_widths(etr.get(name), with_signal(torch.tensor(signed, dtype=torch.float64), var))
    assert low == sorted(low) and high == sorted(high)


def test_the_macro_level_is_symmetric_and_largest_at_one_half() -> None:
    """At |A| = 1 only the macro level acts; groups with k and 16 − k right answers get the same."""
    rewards, ids = rewards_of(*range(17), size=16)
    for name in ("etr", "etr_proportional"):
        objective = etr.get(name, **NO_CLAMP)
        batch = dataclasses.replace(bandit(objective, rewards, ids), advantages=torch.ones_like(rewards))
        by_count = half_widths(objective, batch)[1][::16]
        assert by_count == pytest.approx(by_count[::-1], rel=1e-12)
        assert by_count[:9] == sorted(by_count[:9]) and by_count[8] > by_count[7]


@given(st.permutations(range(8)))
@pytest.mark.parametrize("name", [*ELASTIC, "grpo_wide"])
def test_width_follows_its_response_through_any_order(name: str, order: list[int]) -> None:
    objective = etr.get(name)
    rewards, ids = rewards_of(1, 2, size=4)
    straight = half_widths(objective, bandit(objective, rewards, ids))[1]
    shuffled = half_widths(objective, bandit(objective, rewards[order], ids[order]))[1]
    assert shuffled == pytest.approx([straight[i] for i in order], rel=1e-12)


@pytest.mark.parametrize("fields", [{}, {"eps_low": 0.1, "eps_high": 0.28}, {"micro": 1.0, "macro": 1.0}])
def test_a_normalised_budget_keeps_the_mean_width(fields: dict[str, float]) -> None:
    objective = etr.get("etr", normalize_budget=True, **NO_CLAMP, **fields)
    # Five groups; the first and the last teach nothing and have no share in the budget.
    low, high = half_widths(objective, bandit(objective, *rewards_of(0, 1, 5, 15, 16, size=16)))
    assert fmean(low[16:64]) == pytest.approx(fields.get("eps_low", 0.2), rel=1e-12)
    assert fmean(high[16:64]) == pytest.approx(fields.get("eps_high", 0.2), rel=1e-12)
    assert max(high[16:64]) > 1.2 * min(high[16:64])  # the allocation is still there


def test_a_normalised_budget_counts_responses_not_tokens() -> None:
    objective = etr.get("etr", normalize_budget=True, **NO_CLAMP)
    rewards, ids = rewards_of(1, size=4)
    short = bandit(objective, rewards, ids)
    old, mask = short.log_probs.expand(4, 7), torch.arange(7) < torch.tensor([[7], [1], [2], [3]])
    ragged = dataclasses.replace(short, log_probs=old, old_log_probs=old, response_mask=mask)
    assert half_widths(objective, ragged)[1] == pytest.approx(half_widths(objective, short)[1], rel=1e-12)


def test_a_batch_without_any_signal_has_a_finite_budget() -> None:
    objective = etr.get("etr", normalize_budget=True)
    rewards, ids = rewards_of(0, 4, size=4)
    low, high = half_widths(objective, bandit(objective, rewards, ids))
    # A = 0, v = 0: 0.2·(1 − 0.5·tanh 1)·(1 − 0.25), divided by nothing
    want = 0.2 * (1 - 0.5 * math.tanh(1)) * 0.75
    assert low == pytest.approx([want] * 8) and high == pytest.approx([want] * 8)


@pytest.mark.parametrize(("name", "fields"), [*((n, {}) for n in [*ELASTIC, "grpo_wide"]), ("etr", {"micro": 1.0})])
def test_no_gradient_flows_through_the_region(name: str, fields: dict[str, Any]) -> None:
    for extra in ({}, {"normalize_budget": True}) if name in ("etr", "grpo_wide") else ({},):
        objective = etr.get(name, **fields, **extra)
        batch = bandit(objective, *rewards_of(1, 3, size=4), 0.5)
        for leaf in (batch.advantages, batch.log_probs):
            leaf.requires_grad_()
        region = etr.policy_loss(objective, batch).region
        assert not region.low.requires_grad and not region.high.requires_grad


def test_token_level_advantages_give_token_level_widths() -> None:
    advantages = torch.tensor([[1.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    region = region_of(etr.get("etr", macro=0.0), with_signal(advantages, 0.25))
    want = [[0.2 * (1 + 0.5 * math.tanh(abs(a) - 1)) for a in row] for row in advantages.tolist()]
    torch.testing.assert_close(region.high - 1, torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("correct", range(1, 16))
def test_implicit_budget_of_a_group(correct: int) -> None:
    """mean|A| = 2√(p(1−p)), so the mean of ε·|A| over a group is 2ε√(p(1−p)) while the clamp is off."""
    p = correct / 16
    found = widths(etr.get("etr_implicit", **NO_CLAMP), correct)
    assert fmean(found) == pytest.approx(2 * 0.2 * math.sqrt(p * (1 - p)), rel=1e-12)
    # With λ = 1/2 the rule is ε·(1 + (|A| − 1)/2), half-way between GRPO's ε and ε·|A|.
    half = widths(etr.get("etr_implicit", micro=0.5, **NO_CLAMP), correct)
    assert half == pytest.approx([(0.2 + x) / 2 for x in found], rel=1e-12)


@pytest.mark.parametrize("correct", range(1, 16))
def test_proportional_width_is_twice_the_centred_reward(correct: int) -> None:
    p = correct / 16
    centred = [1 - p] * correct + [p] * (16 - correct)  # |R − p|
    found = widths(etr.get("etr_proportional", **NO_CLAMP), correct)
    assert found == pytest.approx([2 * 0.2 * c for c in centred], rel=1e-12)
    clamped = widths(etr.get("etr_proportional"), correct)
    assert clamped == pytest.approx([min(max(x, 0.05), 0.5) for x in found], rel=1e-12)


@pytest.mark.parametrize("fields", [{}, {"eps_low": 0.1, "eps_high": 0.28}, {"normalize_budget": True}])
def test_the_wide_control_uses_the_mean_width_of_etr(fields: dict[str, Any]) -> None:
    """Over the responses with A ≠ 0; the groups 0/16 and 16/16 have no share, but get the same range."""
    rewards, ids = rewards_of(0, 1, 8, 16, size=16)
    control, elastic = etr.get("grpo_wide", **fields), etr.get("etr", **fields)
    for found, of_etr in zip(
        half_widths(control, bandit(control, rewards, ids)),
        half_widths(elastic, bandit(elastic, rewards, ids)),
        strict=True,
    ):
        assert found == pytest.approx([fmean(of_etr[16:48])] * 64, rel=1e-12)


def test_the_wide_control_has_one_width_per_run() -> None:
    control = etr.get("grpo_wide")
    rewards = torch.stack([rewards_of(k, size=16)[0] for k in (8, 1)])
    batch = bandit(control, rewards, torch.zeros(16, dtype=torch.long))
    region = region_of(control, batch)
    want = [fmean(widths(etr.get("etr"), 8)), fmean(widths(etr.get("etr"), 1))]
    assert (region.high - 1)[..., 0].unique(dim=-1).squeeze(-1).tolist() == pytest.approx(want, rel=1e-12)
    assert want[0] != pytest.approx(want[1], rel=0.1)


def test_the_wide_control_keeps_its_width_in_micro_batches() -> None:
    control = etr.get("grpo_wide")
    whole = bandit(control, *rewards_of(1, 8, size=16), 0.3)
    prepared, _ = control.prepare(whole, {})
    full = region_of(control, whole).high
    parts = [region_of(control, prepared.rows(slice(i, i + 8))).high for i in range(0, 32, 8)]
    assert torch.equal(torch.cat(parts), full)


def test_etr_without_elasticity_is_grpo() -> None:
    neutral = etr.get("etr", micro=0.0, macro=0.0)
    batch = bandit(
        neutral, *rewards_of(1, 2, 3, size=4), torch.tensor([0.2, -0.22] * 6)
    )  # r = 1.22 is in [0.75, 1.25] only
    for found, want in zip(gradient(neutral, batch), gradient(etr.get("grpo"), batch), strict=True):
        assert torch.equal(found, want)
    assert not torch.equal(gradient(etr.get("etr"), batch)[1], gradient(etr.get("grpo"), batch)[1])
