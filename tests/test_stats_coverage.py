"""Do 95 % intervals hold the truth 95 times in 100? Simulated from distributions whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor

from etr import stats

SEEDS, REPEATS, SAMPLES = 64, 500, 400
ERROR = 3 * math.sqrt(0.95 * 0.05 / REPEATS)  # three standard errors of a share of 95 %


def normal(source: Generator, environments: int) -> Tensor:
    """Scores around 0, 1, ..., symmetric, so that every mean and pooled mean is (environments − 1)/2."""
    noise = torch.randn(environments, SEEDS, generator=source, dtype=torch.float64)
    return noise + torch.arange(environments).double().unsqueeze(-1)


def stratified(source: Generator) -> tuple[stats.Interval, float]:
    return stats.stratified_bootstrap(normal(source, 3), stats.pooled_iqm, source, SAMPLES), 1.0


def items(source: Generator) -> tuple[stats.Interval, float]:
    right = (torch.rand(SEEDS, generator=source) < 0.4).double()  # questions that are answered rightly or not
    return stats.bootstrap(right, lambda v: v.mean(-1), source, SAMPLES), 0.4


def improvement(source: Generator) -> tuple[stats.Interval, float]:
    x, y = normal(source, 2) + 0.5, normal(source, 2)
    truth = 0.5 * (1 + math.erf(0.5 / 2))  # P(X > Y) = Φ(0.5/√2)
    return stats.improvement_interval(x, y, source, SAMPLES), truth


def paired(source: Generator) -> tuple[stats.Interval, float]:
    shared = normal(source, 2)
    x, y = shared + 0.2 + 0.3 * normal(source, 2), shared + 0.3 * normal(source, 2)
    return stats.paired_difference(x, y, source, SAMPLES), 0.2


def band(source: Generator) -> tuple[stats.Interval, float]:
    found = stats.iqm_band(normal(source, 1), source, SAMPLES)
    return stats.Interval(*(float(part) for part in found)), 0.0


def profile(source: Generator) -> tuple[stats.Interval, float]:
    scores = torch.rand(2, SEEDS, generator=source, dtype=torch.float64)
    found = stats.performance_profile(scores, torch.tensor([0.3]), source, SAMPLES)
    return stats.Interval(*(float(part) for part in found)), 0.7


@pytest.mark.slow
@pytest.mark.parametrize("draw", [stratified, items, improvement, paired, band, profile])
def test_coverage_is_nominal_within_the_binomial_error(
    draw: Callable[[Generator], tuple[stats.Interval, float]],
) -> None:
    source, hits = Generator().manual_seed(11), 0
    for _ in range(REPEATS):
        interval, truth = draw(source)
        hits += interval.low <= truth <= interval.high
    assert hits / REPEATS == pytest.approx(0.95, abs=ERROR)


def test_coverage_of_eight_seeds_is_a_little_low() -> None:
    """93 % in long simulations; the bound is three standard errors of this one below it."""
    source, hits, repeats = Generator().manual_seed(13), 0, 1500
    for scores in torch.randn(repeats, 1, 8, generator=source, dtype=torch.float64):
        interval = stats.stratified_bootstrap(scores, stats.pooled_iqm, source, SAMPLES)
        hits += interval.low <= 0 <= interval.high
    assert 0.91 < hits / repeats < 0.95


def test_a_narrower_interval_covers_less() -> None:
    """The check above can fail: intervals of level 80 % miss its bounds."""
    source = Generator().manual_seed(11)
    hits = 0
    for _ in range(100):
        interval = stats.stratified_bootstrap(normal(source, 1), stats.pooled_iqm, source, 200, level=0.8)
        hits += interval.low <= 0 <= interval.high
    assert hits / 100 < 0.95 - ERROR


def test_the_sign_flip_test_keeps_its_level_with_few_seeds() -> None:
    """With 6 seeds of a heavy-tailed difference around 0, at most 5 in 100 p-values are below 0.05."""
    source = Generator().manual_seed(5)
    repeats = 600
    differences = torch.empty(repeats, 1, 6, dtype=torch.float64).cauchy_(generator=source)
    alarms = sum(stats.sign_flip_p_value(d, torch.zeros_like(d), source, samples=199) <= 0.05 for d in differences)
    assert alarms / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)


def test_holm_keeps_false_alarms_of_a_family_rare() -> None:
    """Twenty comparisons of nothing: uncorrected, most families raise an alarm; corrected, at most 1 in 20."""
    source = Generator().manual_seed(6)
    families = torch.rand(2000, 20, generator=source).tolist()  # p-values under the null
    assert sum(min(family) <= 0.05 for family in families) / 2000 > 0.6
    assert sum(min(stats.holm(family)) <= 0.05 for family in families) / 2000 <= 0.05 + 0.015
