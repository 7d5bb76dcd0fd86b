"""Statistics against brute force: enumerated subsets, enumerated resamples, simulated coverage."""

from __future__ import annotations

import math
import random
from itertools import combinations, product
from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator, Tensor

from etr.errors import InputError
from etr.stats import (
    area_under_curve,
    bootstrap,
    iqm,
    iqm_band,
    pass_at_k,
    performance_profile,
    stratified_bootstrap,
)


def rng(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def mean(scores: Tensor) -> Tensor:
    return scores.mean((-2, -1))


# ------------------------------------------------------------------------------------------------ pass@k


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_the_share_of_all_subsets_that_hold_a_right_answer(n: int) -> None:
    for c, k in product(range(n + 1), range(1, n + 1)):
        answers = [True] * c + [False] * (n - c)
        share = fmean(any(subset) for subset in combinations(answers, k))
        assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(share, abs=1e-12)


@given(n=st.integers(1, 2000), data=st.data())
def test_pass_at_k_equals_exact_integer_arithmetic_for_large_counts(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(torch.tensor(n), torch.tensor(c), k).item() == pytest.approx(exact, abs=1e-9)


def test_pass_at_k_is_unbiased() -> None:
    p, n, k = 0.3, 6, 4
    expected = sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(torch.tensor(n), torch.tensor(c), k).item()
        for c in range(n + 1)
    )
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_pass_at_k_broadcasts_over_items() -> None:
    values = pass_at_k(torch.tensor([4, 8]), torch.tensor([[0, 0], [1, 1], [4, 8]]), k=1)
    torch.testing.assert_close(values, torch.tensor([[0, 0], [1 / 4, 1 / 8], [1, 1]]).double())


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_k_outside_one_to_n(n: int, c: int, k: int) -> None:
    with pytest.raises(InputError, match=rf"pass@{k} needs 1 <= k <= n.*some n is 4; sample more or lower k"):
        pass_at_k(torch.tensor([9, n]), torch.tensor([0, c]), k)


@pytest.mark.parametrize("c", [-1, 5])
def test_pass_at_k_refuses_impossible_counts(c: int) -> None:
    with pytest.raises(InputError, match="count of right answers below 0 or above n; count each answer once"):
        pass_at_k(torch.tensor([4, 4]), torch.tensor([2, c]), 1)


# ------------------------------------------------------------------------------------------------ iqm


@pytest.mark.parametrize("n", range(1, 13))
def test_iqm_equals_trimmed_mean_by_hand(n: int) -> None:
    values = [random.Random(n).gauss(0, 1) for _ in range(n)]
    cut = int(0.25 * n)  # scipy.stats.trim_mean: nobs * proportiontocut, rounded down, from each end
    expected = fmean(sorted(values)[cut : n - cut])
    assert iqm(torch.tensor(values, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-12)


def test_iqm_known_values() -> None:
    # scipy's documented example: trim_mean(range(20), 0.1) averages 2..17; with a quarter, 5..14.
    assert iqm(torch.arange(20.0)).item() == 9.5
    assert iqm(torch.tensor([-1e9, 1.0, 2.0, 1e9])).item() == 1.5


def test_iqm_reduces_only_the_dimension_asked_for() -> None:
    x = torch.randn(5, 9, generator=rng())
    torch.testing.assert_close(iqm(x, 0), torch.stack([iqm(column) for column in x.T]))
    assert iqm(x, 1).shape == (5,)


@pytest.mark.parametrize("dim", [2, -3])
def test_iqm_refuses_a_dimension_that_is_not_there(dim: int) -> None:
    with pytest.raises(InputError, match=rf"finds no values along dim {dim} of \(2, 3\); choose another dim"):
        iqm(torch.zeros(2, 3), dim)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_iqm_refuses_values_that_are_not_finite(bad: float) -> None:
    with pytest.raises(InputError, match=r"score -?(nan|inf) at index \[1, 0\] is not finite; mend the run"):
        iqm(torch.tensor([[0.0, 1.0], [bad, 1.0]]))


# ------------------------------------------------------------------------------------------------ bootstrap


def test_bootstrap_equals_the_enumeration_of_all_resamples() -> None:
    values = [0.0, 1.0, 5.0]
    means = torch.tensor([fmean(resample) for resample in product(values, repeat=3)])  # 27 equally likely
    for level in (0.6, 0.8):
        tail = torch.tensor([(1 - level) / 2, (1 + level) / 2])
        low, high = means.quantile(tail).tolist()
        got = bootstrap(torch.tensor(values), lambda v: v.mean(-1), rng(), samples=60_000, level=level)
        assert got == pytest.approx((2.0, low, high), abs=1e-6)


def test_stratified_bootstrap_equals_the_enumeration_over_both_strata() -> None:
    scores = [[0.0, 1.0], [10.0, 14.0]]
    draws = [fmean(a + b) for a in product(scores[0], repeat=2) for b in product(scores[1], repeat=2)]
    low, high = torch.tensor(draws).quantile(torch.tensor([0.2, 0.8])).tolist()
    got = stratified_bootstrap(torch.tensor(scores), mean, rng(), samples=60_000, level=0.6)
    assert got == pytest.approx((6.25, low, high), abs=1e-6)


def test_strata_never_mix_and_seeds_are_what_is_resampled() -> None:
    """Axis trap: each environment is constant, so resampling its seeds changes nothing; mixing would."""
    constant = torch.tensor([[0.0] * 5, [1.0] * 5, [7.0] * 5])
    assert stratified_bootstrap(constant, mean, rng()) == pytest.approx((8 / 3,) * 3)
    flipped = stratified_bootstrap(constant.T, mean, rng())  # environments and seeds exchanged by mistake
    assert flipped.high - flipped.low > 1


def test_strata_are_resampled_independently() -> None:
    """Var of the mean of two independent strata is half that of one: the interval shrinks by about √2."""
    seeds = torch.randn(1, 40, generator=rng())
    one = stratified_bootstrap(seeds, mean, rng(1), samples=8000)
    two = stratified_bootstrap(seeds.expand(2, -1), mean, rng(1), samples=8000)
    assert (one.high - one.low) / (two.high - two.low) == pytest.approx(math.sqrt(2), rel=0.06)


def test_coverage_of_the_95_percent_interval() -> None:
    source, hits, repeats = rng(5), 0, 400
    for _ in range(repeats):
        scores = torch.randn(3, 16, generator=source) + torch.tensor([[0.0], [1.0], [2.0]])
        interval = stratified_bootstrap(scores, lambda s: iqm(s.flatten(-2)), source, samples=300)
        # The pooled IQM has no closed form; the three shifted normals are symmetric about 1, so it is 1.
        hits += interval.low <= 1.0 <= interval.high
    assert 0.90 <= hits / repeats <= 0.98


def test_same_seed_same_interval_and_another_seed_another() -> None:
    scores = torch.randn(2, 8, generator=rng())
    first, again, other = (stratified_bootstrap(scores, mean, rng(s)) for s in (3, 3, 4))
    assert first == again
    assert first[1:] != other[1:]


def test_global_random_state_is_neither_used_nor_changed() -> None:
    before = torch.random.get_rng_state()
    stratified_bootstrap(torch.randn(2, 4, generator=rng()), mean, rng())
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_band_equals_the_enumeration_of_all_resamples_at_every_point(level: float) -> None:
    points = torch.tensor([[0.0, 9.0, 2.0, 4.0, 3.0], [1.0] * 5, [-3.0, 5.0, 8.0, 0.0, 0.5]], dtype=torch.float64)
    band = iqm_band(points, rng(), samples=60_000, level=level)
    for row, estimate, low, high in zip(points, *band, strict=True):
        draws = torch.tensor([fmean(sorted(r)[1:4]) for r in product(row.tolist(), repeat=5)], dtype=torch.float64)
        ends = draws.quantile(torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64))
        assert [estimate, low, high] == pytest.approx([iqm(row).item(), *ends.tolist()], abs=0.05)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2)])
def test_stratified_bootstrap_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"scores have shape .* give \[environments, seeds\]"):
        stratified_bootstrap(torch.zeros(shape), mean, rng())


def test_bootstrap_refuses_a_table() -> None:
    with pytest.raises(InputError, match=r"values have shape \(2, 3\); give one value per item, \[n\]"):
        bootstrap(torch.zeros(2, 3), mean, rng())


def test_one_seed_is_too_few() -> None:
    with pytest.raises(InputError, match=r"needs at least 2 seeds or items in the last dim of \(3, 1\); run more"):
        stratified_bootstrap(torch.zeros(3, 1), mean, rng())
    with pytest.raises(InputError, match="a band needs at least 3 seeds, got 2; run more seeds"):
        iqm_band(torch.zeros(3, 2), rng())
    with pytest.raises(InputError, match="needs at least 2 seeds or items"):
        bootstrap(torch.zeros(1), lambda v: v.mean(-1), rng())


def test_nan_scores_are_refused_with_their_place() -> None:
    with pytest.raises(InputError, match=r"score nan at index \[0, 1\] is not finite"):
        stratified_bootstrap(torch.tensor([[0.0, math.nan]]), mean, rng())


@pytest.mark.parametrize("statistic", [lambda s: s.mean(-1), lambda s: s.mean(), lambda s: s.mean((0, 1))])
def test_a_statistic_that_reduces_other_dimensions_is_refused(statistic: object) -> None:
    with pytest.raises(InputError, match="must reduce the last two dimensions"):
        stratified_bootstrap(torch.zeros(2, 4), statistic, rng(), samples=10)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ curves, profiles


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 5)), min_size=2, max_size=7))
def test_area_under_curve_equals_a_fine_sum(points: list[tuple[int, int]]) -> None:
    steps = [sum(width for width, _ in points[:i]) for i in range(len(points))]
    values = [float(value) for _, value in points]
    fine = 0.0  # the midpoint rule is exact on straight pieces
    for t in range(steps[-1]):
        k = max(i for i, step in enumerate(steps) if step <= t)
        fine += values[k] + (values[k + 1] - values[k]) * (t + 0.5 - steps[k]) / (steps[k + 1] - steps[k])
    got = area_under_curve(torch.tensor([values, values]), steps)
    assert got.tolist() == pytest.approx([fine / steps[-1]] * 2, abs=1e-9)


def test_area_under_curve_of_a_point_and_of_what_is_no_curve() -> None:
    assert area_under_curve(torch.tensor([[3.0]]), [5]).item() == 3
    for steps in ([1, 1], [2, 1]):
        with pytest.raises(InputError, match="steps of a curve must increase"):
            area_under_curve(torch.zeros(2), steps)
    with pytest.raises(InputError, match=r"values have shape \(2,\) for 3 steps"):
        area_under_curve(torch.zeros(2), [1, 2, 3])


def test_performance_profile_equals_counting_and_the_enumeration_of_resamples() -> None:
    scores, at = [[0.1, 0.5, 0.9], [0.5, 0.7, 0.2]], [0.0, 0.2, 0.5, 0.8, 1.0]
    given, thresholds = (torch.tensor(values, dtype=torch.float64) for values in (scores, at))
    band = performance_profile(given, thresholds, rng(), samples=60_000, level=0.9)
    for i, threshold in enumerate(at):
        above = [[float(x > threshold) for x in row] for row in scores]
        draws = torch.tensor([fmean(a + b) for a in product(above[0], repeat=3) for b in product(above[1], repeat=3)])
        low, high = draws.quantile(torch.tensor([0.05, 0.95])).tolist()
        expected = (fmean(above[0] + above[1]), low, high)
        assert [float(part[i]) for part in band] == pytest.approx(expected, abs=1e-6)


def test_performance_profile_refuses_two_seeds_and_other_shapes() -> None:
    with pytest.raises(InputError, match="a band needs at least 3 seeds, got 2"):
        performance_profile(torch.zeros(4, 2), torch.zeros(1), rng())
    with pytest.raises(InputError, match=r"give \[environments, seeds\] and \[thresholds\]"):
        performance_profile(torch.zeros(4), torch.zeros(1), rng())
