"""Advantage estimators against loops in plain Python, and exact zeros where there is no signal."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean, pstdev, stdev

import pytest
import torch
from batches import rewards_of
from hypothesis import given
from hypothesis import strategies as st

from etr.advantages import ESTIMATORS, batch_whiten, get_estimator, group_center, group_zscore, leave_one_out

IDS = [0, 1, 0, 2, 1, 2, 0, 0]  # interleaved groups of 4, 2 and 2
REWARDS = [0.3, 1.0, 0.0, 0.5, 0.25, 0.5, 0.9, 0.4]  # the third group has no signal

Loop = Callable[[float, list[float], list[float]], float]  # own reward, the group's, the batch's centred rewards
LOOPS: dict[str, Loop] = {
    "group_zscore": lambda r, group, batch: (r - fmean(group)) / pstdev(group),
    "group_center": lambda r, group, batch: r - fmean(group),
    "leave_one_out": lambda r, group, batch: r - (sum(group) - r) / (len(group) - 1),
    "batch_whiten": lambda r, group, batch: (r - fmean(group)) / (pstdev(batch) + 1e-6),
}


def by_loop(name: str, rewards: list[float], ids: list[int]) -> list[float]:
    groups = [[r for r, j in zip(rewards, ids, strict=True) if j == i] for i in ids]
    centred = [r - fmean(group) for r, group in zip(rewards, groups, strict=True)]
    return [
        0.0 if len(set(group)) == 1 else LOOPS[name](r, group, centred)
        for r, group in zip(rewards, groups, strict=True)
    ]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_each_estimator_equals_its_loop(name: str) -> None:
    found = get_estimator(name)(torch.tensor(REWARDS, dtype=torch.float64), torch.tensor(IDS))
    assert found.tolist() == pytest.approx(by_loop(name, REWARDS, IDS), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_runs_are_separate(name: str) -> None:
    """Also with other groups in each run; whitening takes the std of its own run."""
    runs = [REWARDS, [2 * r for r in reversed(REWARDS)], [r**2 for r in REWARDS]]
    ids = [IDS, IDS[::-1], [5, 5, -1, -1, 7, 7, 7, -1]]
    found = get_estimator(name)(torch.tensor(runs, dtype=torch.float64), torch.tensor(ids))
    for row, rewards, labels in zip(found.tolist(), runs, ids, strict=True):
        assert row == pytest.approx(by_loop(name, rewards, labels), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1, 1 / 3, 0.7, 1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_give_exact_zeros(name: str, reward: float, dtype: torch.dtype) -> None:
    """0.1 does not average to itself in floating point; the zero must be exact all the same."""
    for size in (2, 3, 7, 10):
        found = get_estimator(name)(torch.full((2 * size,), reward, dtype=dtype), torch.arange(2 * size) % 2)
        assert found.tolist() == [0.0] * (2 * size)
        assert found.dtype == dtype


@given(st.floats(0.0, 1.0, width=32), st.integers(2, 20), st.sampled_from(sorted(ESTIMATORS)))
def test_any_equal_rewards_give_exact_zeros(reward: float, size: int, name: str) -> None:
    assert get_estimator(name)(torch.full((size,), reward), torch.zeros(size, dtype=torch.long)).eq(0).all()


@pytest.mark.parametrize("correct", range(1, 8))
def test_sizes_for_right_and_wrong_answers(correct: int) -> None:
    """√((1−p)/p) for right and −√(p/(1−p)) for wrong ones; their mean square is 1, their mean size 2√(p(1−p))."""
    p = correct / 8
    found = group_zscore(*rewards_of(correct, size=8))
    want = [math.sqrt((1 - p) / p)] * correct + [-math.sqrt(p / (1 - p))] * (8 - correct)
    assert found.tolist() == pytest.approx(want, rel=1e-12)
    assert found.square().mean().item() == pytest.approx(1.0, rel=1e-12)
    assert found.abs().mean().item() == pytest.approx(2 * math.sqrt(p * (1 - p)), rel=1e-12)


def test_the_other_libraries_conventions() -> None:
    """TRL and verl: sample std, with a small number added to it."""
    group, ids = [0.2, 0.9, 0.4], torch.zeros(3, dtype=torch.long)
    found = group_zscore(torch.tensor(group, dtype=torch.float64), ids, ddof=1, eps=1e-4)
    assert found.tolist() == pytest.approx([(r - 0.5) / (stdev(group) + 1e-4) for r in group], rel=1e-12)
    whitened = batch_whiten(torch.tensor(group, dtype=torch.float64), ids, eps=0.5)
    assert whitened.tolist() == pytest.approx([(r - 0.5) / (pstdev(group) + 0.5) for r in group], rel=1e-12)


mixed_groups = st.lists(st.integers(-3, 3), min_size=2, max_size=8).filter(lambda g: len(set(g)) > 1)


@given(mixed_groups, st.floats(0.1, 10.0), st.floats(-5.0, 5.0))
def test_invariances(group: list[int], scale: float, shift: float) -> None:
    """All sum to zero in a group; z-scores ignore scale and shift; leave-one-out is G/(G−1) times centring."""
    rewards, ids = torch.tensor(group, dtype=torch.float64), torch.zeros(len(group), dtype=torch.long)
    for estimator in ESTIMATORS.values():
        assert estimator(rewards, ids).sum().item() == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(group_zscore(scale * rewards + shift, ids), group_zscore(rewards, ids))
    larger = len(group) / (len(group) - 1)
    torch.testing.assert_close(leave_one_out(rewards, ids), larger * group_center(rewards, ids))
