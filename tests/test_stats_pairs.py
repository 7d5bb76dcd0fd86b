"""Statistics of two recipes and of many comparisons, against enumeration: all pairs, all resamples, all flips."""

from __future__ import annotations

import math
from itertools import product
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator

from etr.errors import InputError
from etr.stats import (
    holm,
    improvement_interval,
    paired_difference,
    probability_of_improvement,
    sign_flip_p_value,
)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------ improvement


def brute_improvement(x: list[list[float]], y: list[list[float]]) -> float:
    pairs = [[(a > b) + (a == b) / 2 for a, b in product(*task)] for task in zip(x, y, strict=True)]
    return fmean(fmean(task) for task in pairs)


@given(st.data())
def test_probability_of_improvement_equals_all_pairs(data: st.DataObject) -> None:
    def scores() -> list[list[float]]:
        n = data.draw(st.integers(1, 5))
        return data.draw(st.lists(st.lists(st.integers(0, 3), min_size=n, max_size=n), min_size=2, max_size=2))

    x, y = scores(), scores()
    got = probability_of_improvement(torch.tensor(x), torch.tensor(y))
    assert got == pytest.approx(brute_improvement(x, y), abs=1e-12)
    assert got + probability_of_improvement(torch.tensor(y), torch.tensor(x)) == pytest.approx(1)


def test_improvement_interval_equals_the_enumeration_of_all_resamples() -> None:
    x, y = [1.0, 4.0, 6.0], [2.0, 4.0]
    draws = [brute_improvement([list(a)], [list(b)]) for a in product(x, repeat=3) for b in product(y, repeat=2)]
    low, high = torch.tensor(draws).quantile(torch.tensor([0.25, 0.75])).tolist()
    got = improvement_interval(torch.tensor([x]), torch.tensor([y]), rng(), samples=60_000, level=0.5)
    assert got == pytest.approx((brute_improvement([x], [y]), low, high), abs=1e-6)


def test_improvement_needs_equal_tasks_and_two_seeds_for_an_interval() -> None:
    with pytest.raises(InputError, match=r"give \[tasks, seeds\] with equal tasks"):
        probability_of_improvement(torch.zeros(2, 3), torch.zeros(1, 3))
    with pytest.raises(InputError, match="at least 2 seeds on each side, got 1 and 3"):
        improvement_interval(torch.zeros(2, 1), torch.zeros(2, 3), rng())
    with pytest.raises(InputError, match="is not finite"):
        probability_of_improvement(torch.zeros(1, 2), torch.tensor([[math.nan, 0.0]]))


# ------------------------------------------------------------------------------------------------ pairs


def test_paired_difference_equals_the_enumeration_of_all_resamples_of_pairs() -> None:
    x, y = [1.0, 4.0, 6.0], [2.0, 4.0, 1.0]
    d = [a - b for a, b in zip(x, y, strict=True)]
    draws = torch.tensor([fmean(resample) for resample in product(d, repeat=3)], dtype=torch.float64)
    low, high = draws.quantile(torch.tensor([0.2, 0.8], dtype=torch.float64)).tolist()
    got = paired_difference(torch.tensor([x]), torch.tensor([y]), rng(), samples=60_000, level=0.6)
    assert got == pytest.approx((fmean(d), low, high), abs=1e-6)


def test_luck_that_both_shared_cancels() -> None:
    """The seeds differ by 10, the recipes by 0.1 ± 0.01: paired, the interval is a thousand times narrower."""
    luck, own = 10 * torch.randn(1, 30, generator=rng()), 0.01 * torch.randn(1, 30, generator=rng(1))
    paired = paired_difference(luck + 0.1 + own, luck, rng())
    assert 0.09 < paired.low < paired.high < 0.11
    other = paired_difference(luck + 0.1, luck.flip(-1), rng())  # the pairs are broken up
    assert other.high - other.low > 1


@pytest.mark.parametrize("d", [[0.5, -0.2, 0.9, 1.4, 0.3], [1.0] * 6, [-2.0, 1.0, 1.0, 0.0]])
def test_sign_flip_p_value_equals_the_share_of_all_flips(d: list[float]) -> None:
    flips = list(product((-1, 1), repeat=len(d)))
    total = abs(sum(d))
    share = fmean(abs(sum(s * v for s, v in zip(flip, d, strict=True))) >= total - 1e-9 for flip in flips)
    got = sign_flip_p_value(torch.tensor([d]), torch.zeros(1, len(d)), rng(), samples=20_000)
    assert got == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 20_000) + 1e-4)


def test_sign_flips_are_counted_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of any size look at as many flips in all: of 4 differences of 1, 2 in 16 flips are as extreme."""
    monkeypatch.setattr("etr.stats.pairs.MOST_NUMBERS", 4 * 7)
    p = sign_flip_p_value(torch.ones(1, 4), torch.zeros(1, 4), rng(), samples=8000)
    assert p == pytest.approx(2 / 16, abs=4 * math.sqrt(2 / 16 * 14 / 16 / 8000))


def test_equal_recipes_differ_by_nothing() -> None:
    x = torch.randn(2, 5, generator=rng())
    assert paired_difference(x, x, rng()) == (0, 0, 0)
    assert sign_flip_p_value(x, x, rng()) == 1


def test_pairs_need_one_shape_and_two_seeds() -> None:
    for statistic in (paired_difference, sign_flip_p_value):
        with pytest.raises(InputError, match=r"shapes \(1, 3\) and \(1, 4\); pairs need one shape, \[tasks, seeds\]"):
            statistic(torch.zeros(1, 3), torch.zeros(1, 4), rng())
        with pytest.raises(InputError, match="needs at least 2 seeds"):
            statistic(torch.zeros(1, 1), torch.zeros(1, 1), rng())
        with pytest.raises(InputError, match="is not finite"):
            statistic(torch.zeros(1, 2), torch.tensor([[0.0, math.inf]]), rng())


# ------------------------------------------------------------------------------------------------ families


@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_equals_the_step_down_procedure(p_values: list[float]) -> None:
    """Adjusted p ≤ α exactly where Holm's procedure at level α rejects, for every α that matters."""
    adjusted = holm(p_values)
    for alpha in (0.01, 0.05, 0.2, *p_values):
        rejected: set[int] = set()
        for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if (len(p_values) - rank) * p_values[place] > alpha:
                break
            rejected.add(place)
        if alpha < 1:
            assert {i for i, p in enumerate(adjusted) if p <= alpha} == rejected


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(InputError, match=r"is outside \[0, 1\]; leave out comparisons that have none"):
        holm([0.5, p])
