"""Floor 2: what a handful of seeds can and cannot say. All randomness comes from the generator handed in.

Intervals are percentile bootstrap intervals. Seeds (or items) are resampled, because a rerun would change
them; environments are strata: they stay as they are, and none lends its scores to another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from etr.errors import InputError


class Interval(NamedTuple):
    """An estimate with the ends of its interval, in the unit of the scores."""

    estimate: float
    low: float
    high: float


class Band(NamedTuple):
    """The same for many points at once (the steps of a learning curve): three tensors of one shape."""

    estimate: Tensor
    low: Tensor
    high: Tensor


def pass_at_k(n: Tensor, c: Tensor, k: int) -> Tensor:
    """Unbiased chance that at least one of k answers is right, from n sampled answers with c right ones.

    pass@k = 1 − C(n−c, k) / C(n, k) = 1 − ∏_{j<k} (n−c−j)/(n−j), float64; n and c broadcast.
    The product does not overflow as factorials do. Source: Chen et al. 2021 (2107.03374), Eq. (1).
    Raises InputError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n everywhere.

    >>> pass_at_k(torch.tensor(4), torch.tensor([0, 1, 2]), k=2)
    tensor([0.0000, 0.5000, 0.8333], dtype=torch.float64)
    """
    n, c = n.double(), c.double()
    if k < 1 or bool((k > n).any()):
        raise InputError(f"pass@{k} needs 1 <= k <= n, but some n is {n.min():g}; sample more or lower k")
    if bool(((c < 0) | (c > n)).any()):
        raise InputError("pass@k got a count of right answers below 0 or above n; count each answer once")
    drawn = torch.arange(k, dtype=torch.float64, device=n.device)
    misses = ((n - c).unsqueeze(-1) - drawn) / (n.unsqueeze(-1) - drawn)  # has a factor 0 once n - c < k
    return 1 - misses.prod(-1)


def iqm(x: Tensor, dim: int = -1) -> Tensor:
    """Interquartile mean: drop the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest values along `dim`, average the rest.

    This is scipy's `trim_mean(x, 0.25)`, as in rliable (Agarwal et al. 2021, 2108.13264); for n < 4 it is the
    mean. Raises InputError for values that are not finite and for a dimension that is empty or not there.

    >>> iqm(torch.tensor([0.0, 1.0, 2.0, 3.0, 100.0]))
    tensor(2.)
    """
    if not -x.ndim <= dim < x.ndim or x.shape[dim] == 0:
        raise InputError(f"iqm finds no values along dim {dim} of {tuple(x.shape)}; choose another dim")
    _refuse_not_finite(x)
    cut = x.shape[dim] // 4
    return x.sort(dim).values.narrow(dim, cut, x.shape[dim] - 2 * cut).mean(dim)


def iqm_band(values: Tensor, generator: Generator, samples: int = 2000, level: float = 0.95) -> Band:
    """Interquartile mean of the last dimension with a pointwise interval: `[*P, seeds]` → three `[*P]`.

    A resample of sorted values is a resample of ranks, whatever the values are; so one row of weights serves
    all points, and the whole band is one matrix product.
    """
    values = _scores(values)
    n = values.shape[-1]
    cut = n // 4
    kept = torch.randint(n, (samples, n), generator=generator).sort(-1).values[:, cut : n - cut]
    draws = values.sort(-1).values @ _weights(kept, n).T
    return Band(iqm(values), *_ends(draws, level))


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
    scores = _scores(scores)
    index = torch.randint(scores.shape[-1], (samples, *scores.shape), generator=generator)
    draws = statistic(scores.expand(samples, -1, -1).gather(-1, index))
    if draws.shape != (samples,):
        raise InputError(
            f"the statistic turned {tuple(index.shape)} into {tuple(draws.shape)}; "
            "it must reduce the last two dimensions (environments, seeds) and no other"
        )
    low, high = _ends(draws, level)
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


def probability_of_improvement(x: Tensor, y: Tensor) -> float:
    """Chance that a random seed of x beats one of y, averaged over tasks; a tie counts one half.

    P(X > Y) = mean over tasks of [#(x_i > y_j) + ½ #(x_i = y_j)] / (n m); x: `[tasks, n]`, y: `[tasks, m]`.
    Source: Agarwal et al. 2021 (2108.13264), Sec. 4.3. Raises InputError for other shapes and NaN or ±inf.

    >>> probability_of_improvement(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 2.0]]))
    0.625
    """
    return float(_wins(x, y).mean())


def improvement_interval(
    x: Tensor, y: Tensor, generator: Generator, samples: int = 2000, level: float = 0.95
) -> Interval:
    """`probability_of_improvement` with an interval: seeds of x and of y are resampled within each task."""
    tasks, n, m = (wins := _wins(x, y)).shape
    if min(n, m) < 2:
        raise InputError(f"an interval needs at least 2 seeds on each side, got {n} and {m}; run more seeds")
    of_x = _weights(torch.randint(n, (samples, tasks, n), generator=generator), n)
    of_y = _weights(torch.randint(m, (samples, tasks, m), generator=generator), m)
    draws = torch.einsum("sti,tij,stj->st", of_x, wins, of_y).mean(-1)
    low, high = _ends(draws, level)
    return Interval(float(wins.mean()), float(low), float(high))


def _wins(x: Tensor, y: Tensor) -> Tensor:
    """1 where x_i > y_j, ½ where equal, else 0: `[tasks, n, m]`."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise InputError(
            f"scores have shapes {tuple(x.shape)} and {tuple(y.shape)}; give [tasks, seeds] with equal tasks"
        )
    for scores in (x, y):
        _refuse_not_finite(scores)
    ours, theirs = x.double().cpu().unsqueeze(-1), y.double().cpu().unsqueeze(-2)
    return (ours > theirs).double() + 0.5 * (ours == theirs).double()


def _weights(index: Tensor, n: int) -> Tensor:
    """Share of each of n places among the places drawn in the last dimension: `[..., n]`, rows sum to 1."""
    counts = torch.zeros(*index.shape[:-1], n, dtype=torch.float64)
    return counts.scatter_add_(-1, index, torch.ones_like(index, dtype=torch.float64)) / index.shape[-1]


def _ends(draws: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """The percentiles of the last dimension that leave (1 − level)/2 on each side."""
    tail = (1 - level) / 2
    return draws.quantile(tail, dim=-1), draws.quantile(1 - tail, dim=-1)


def _scores(scores: Tensor) -> Tensor:
    """Scores as float64 on the CPU, where the generator lives, after the checks."""
    if scores.ndim == 0 or scores.shape[-1] < 2:
        raise InputError(
            f"a bootstrap needs at least 2 seeds or items in the last dim of {tuple(scores.shape)}; run more"
        )
    _refuse_not_finite(scores)
    return scores.double().cpu()


def _refuse_not_finite(scores: Tensor) -> None:
    if not bool(scores.isfinite().all()):
        at = (~scores.isfinite()).nonzero()[0].tolist()
        value = scores[tuple(at)].item()
        raise InputError(f"score {value:g} at index {at} is not finite; mend the run or leave that seed out")
