"""Group statistics against loops: any labels, in any order, in any number of runs."""

from __future__ import annotations

from statistics import fmean, pvariance

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from etr.groups import Groups, GroupStats, group_stats

responses = st.lists(st.tuples(st.integers(-5, 5), st.floats(0.0, 1.0)), min_size=1, max_size=12)


def by_loop(rewards: list[float], ids: list[int]) -> tuple[list[float], list[float], list[float]]:
    groups = [[r for r, j in zip(rewards, ids, strict=True) if j == i] for i in ids]
    return [fmean(g) for g in groups], [pvariance(g) for g in groups], [float(len(g)) for g in groups]


def check(found: GroupStats, rewards: list[float], ids: list[int]) -> None:
    for column, want in zip((found.mean, found.var, found.size), by_loop(rewards, ids), strict=True):
        assert column.tolist() == pytest.approx(want, abs=1e-12)


@given(responses, st.sampled_from([1, 1000, 2**40, -(2**40)]), st.integers(-9, 9))
def test_statistics_equal_a_loop_for_any_labels(rows: list[tuple[int, float]], stride: int, shift: int) -> None:
    """Interleaved, negative, huge and non-consecutive ids are labels, nothing more."""
    labels, rewards = [i * stride + shift for i, _ in rows], [r for _, r in rows]
    check(group_stats(torch.tensor(rewards, dtype=torch.float64), torch.tensor(labels)), rewards, labels)


@pytest.mark.parametrize("label", [0, 100])
def test_runs_may_have_different_groups(label: int) -> None:
    """With ids `[R, B]` every run has its own groups; with `[B]` all share them. Labels beyond B are renumbered."""
    rewards = [[0.0, 1.0, 1.0, 0.5], [1.0, 0.0, 0.25, 0.5]]
    ids = [[0, 0, 1, 1], [3, 2, 3, 2]]
    shifted = [[i + label for i in row] for row in ids]
    both = group_stats(torch.tensor(rewards, dtype=torch.float64), torch.tensor(shifted))
    shared = group_stats(torch.tensor(rewards, dtype=torch.float64), torch.tensor(shifted[1]))
    for run in (0, 1):
        check(GroupStats(both.mean[run], both.var[run], both.size[run]), rewards[run], ids[run])
        check(GroupStats(shared.mean[run], shared.var[run], shared.size[run]), rewards[run], ids[1])


def test_three_run_dimensions() -> None:
    rewards = torch.rand(2, 3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = torch.tensor([7, -1, 7, 7, -1, 3])
    found = group_stats(rewards, ids)
    for i in range(2):
        for j in range(3):
            check(GroupStats(found.mean[i, j], found.var[i, j], found.size[i, j]), rewards[i, j].tolist(), ids.tolist())


def test_declared_ranges_are_mapped_to_the_unit_interval() -> None:
    """Rewards ±1 are 0/1 rewards after the mapping: p = 1/4, v = 3/16."""
    ids = torch.zeros(4, dtype=torch.long)
    found = group_stats(torch.tensor([1.0, -1.0, -1.0, -1.0]), ids, reward_range=(-1.0, 1.0))
    assert found.mean.tolist() == [0.25] * 4 and found.var.tolist() == [0.1875] * 4
    wide = group_stats(torch.tensor([0.0, 5.0, 10.0, 5.0]), ids, reward_range=(0.0, 10.0))
    assert wide.mean.tolist() == [0.5] * 4 and wide.var.tolist() == [0.125] * 4


@given(st.lists(st.booleans(), min_size=1, max_size=40), st.integers(1, 5))
def test_variance_of_binary_rewards(correct: list[bool], groups: int) -> None:
    ids = torch.arange(len(correct)) % groups
    stats = group_stats(torch.tensor(correct).float(), ids)
    torch.testing.assert_close(stats.var, stats.mean * (1 - stats.mean))
    assert bool(stats.is_binary())
    assert (stats.var <= 0.25 + 1e-6).all()


@pytest.mark.parametrize("odd", [0.5, 0.1, 0.99])
def test_one_reward_between_0_and_1_is_noticed(odd: float) -> None:
    rewards = torch.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, odd, 1.0])
    ids = torch.arange(8) // 4
    assert not bool(group_stats(rewards, ids).is_binary())
    assert not bool(group_stats(torch.stack([rewards.round(), rewards]), ids).is_binary())  # in any run


def test_rows_selects_responses() -> None:
    stats = group_stats(torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 2), torch.tensor([0, 0, 1, 1]))
    some = stats.rows(torch.tensor([3, 0]))
    assert some.mean.tolist() == [[1.0, 0.5]] * 2
    assert some.var.tolist() == [[0.0, 0.25]] * 2
    assert stats.rows(slice(2, 4)).size.tolist() == [[2.0, 2.0]] * 2


def test_homogeneous_groups_are_found_exactly() -> None:
    """In single precision ten times 0.1 has a variance of about 1e-17, and 0.1 next to its neighbour differs."""
    near = torch.nextafter(torch.tensor(0.1), torch.tensor(1.0)).item()
    rewards = torch.tensor([0.1] * 10 + [0.1, near])
    found = Groups(rewards, torch.tensor([0] * 10 + [1] * 2)).homogeneous(rewards)
    assert found.tolist() == [True] * 10 + [False] * 2


@pytest.mark.parametrize("ids", [[0, 0, 1, 1, 2, 2], [4, 7, 4, 7, 7, -3]])
def test_least_and_largest_of_a_group(ids: list[int]) -> None:
    """In rows of equal groups and in any others, also where some values are infinite (answers that do not count)."""
    values = [[0.5, -1.0, float("inf"), 2.0, 0.0, 3.0], [1.0, 1.0, 1.0, float("-inf"), 2.0, -2.0]]
    groups = Groups(torch.zeros(2, 6, dtype=torch.float64), torch.tensor(ids))
    for found, choose in ((groups.least, min), (groups.largest, max)):
        want = [[choose(v for v, j in zip(row, ids, strict=True) if j == i) for i in ids] for row in values]
        assert found(torch.tensor(values, dtype=torch.float64)).tolist() == want
