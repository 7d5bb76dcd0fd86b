"""Percentile bootstrap intervals: seeds (or items) are resampled, because a rerun would change them.

Environments are strata: they stay as they are, and none lends its scores to another.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from etr.errors import InputError
from etr.stats.checks import Band, Interval, checked, ends, weights
from etr.stats.summaries import iqm

FEWEST_SEEDS = 3  # two seeds span a resampling distribution of three values: that is no band


def iqm_band(values: Tensor, generator: Generator, samples: int = 2000, level: float = 0.95) -> Band:
    """Interquartile mean of the last dimension with a pointwise interval: `[*P, seeds]` → three `[*P]`.

    A resample of sorted values is a resample of ranks, whatever the values are; so one row of weights serves
    all points, and the whole band is one matrix product. Raises InputError for fewer than 3 seeds.
    """
    values = checked(values)
    _refuse_few(values)
    n = values.shape[-1]
    cut = n // 4
    kept = torch.randint(n, (samples, n), generator=generator).sort(-1).values[:, cut : n - cut]
    draws = values.sort(-1).values @ weights(kept, n).T
    return Band(iqm(values), *ends(draws, level))


def stratified_bootstrap(
    scores: Tensor,
    statistic: Callable[[Tensor], Tensor],
    generator: Generator,
    samples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic over environments and seeds, resampling the seeds within each environment.

    scores: `[strata, seeds]`; statistic: `[*S, strata, seeds]` → `[*S]` reduces the last two dimensions only.
    Raises InputError for other shapes, scores that are not finite, fewer than 2 seeds, or a statistic that
    reduces other dimensions.

    >>> scores = torch.tensor([[0.0, 1.0, 0.0, 1.0], [10.0, 10.0, 10.0, 10.0]])
    >>> stratified_bootstrap(scores, lambda s: s.mean((-2, -1)), torch.Generator().manual_seed(0))
    Interval(estimate=5.25, low=5.0, high=5.5)
    """
    if scores.ndim != 2:
        raise InputError(f"scores have shape {tuple(scores.shape)}; give [environments, seeds]")
    scores = checked(scores)
    index = torch.randint(scores.shape[-1], (samples, *scores.shape), generator=generator)
    draws = statistic(scores.expand(samples, -1, -1).gather(-1, index))
    if draws.shape != (samples,):
        raise InputError(
            f"the statistic turned {tuple(index.shape)} into {tuple(draws.shape)}; "
            "it must reduce the last two dimensions (environments, seeds) and no other"
        )
    low, high = ends(draws, level)
    return Interval(float(statistic(scores)), float(low), float(high))


def bootstrap(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor],
    generator: Generator,
    samples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Interval of a statistic of independent items, `[n]`; statistic: `[*S, n]` → `[*S]`.

    Raises InputError as `stratified_bootstrap` does, of which this is the case of one stratum.
    """
    if values.ndim != 1:
        raise InputError(f"values have shape {tuple(values.shape)}; give one value per item, [n]")
    return stratified_bootstrap(values.unsqueeze(0), lambda s: statistic(s.squeeze(-2)), generator, samples, level)


def performance_profile(
    scores: Tensor, thresholds: Tensor, generator: Generator, samples: int = 2000, level: float = 0.95
) -> Band:
    """Share of runs that score above each threshold, with a pointwise interval: three `[thresholds]`.

    F̂(τ) = mean over environments of #{seeds: x > τ} / seeds; scores: `[environments, seeds]`. Seeds are resampled
    within each environment. Source: performance profiles of Agarwal et al. 2021 (2108.13264). Raises InputError for
    other shapes, scores that are not finite, and fewer than 3 seeds.

    >>> scores, at = torch.tensor([[0.1, 0.6, 0.8]]), torch.tensor([0.0, 0.5, 0.6])
    >>> performance_profile(scores, at, torch.Generator().manual_seed(0)).estimate
    tensor([1.0000, 0.6667, 0.3333], dtype=torch.float64)
    """
    if scores.ndim != 2 or thresholds.ndim != 1:
        raise InputError(
            f"scores have shape {tuple(scores.shape)} and thresholds {tuple(thresholds.shape)}; "
            "give [environments, seeds] and [thresholds]"
        )
    scores = checked(scores)
    _refuse_few(scores)
    strata, n = scores.shape
    above = (scores.unsqueeze(-1) > thresholds.double().cpu()).double()  # [strata, seeds, thresholds]
    drawn = weights(torch.randint(n, (samples, strata, n), generator=generator), n)
    draws = torch.einsum("sen,ent->ts", drawn, above) / strata
    return Band(above.mean((0, 1)), *ends(draws, level))


def _refuse_few(values: Tensor) -> None:
    if values.shape[-1] < FEWEST_SEEDS:
        raise InputError(f"a band needs at least {FEWEST_SEEDS} seeds, got {values.shape[-1]}; run more seeds")
