"""Two recipes: how often one beats the other, by how much on the same random numbers, and whether that is chance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from etr.errors import InputError
from etr.stats.checks import Interval, checked, ends, refuse_not_finite, weights
from etr.stats.resampling import stratified_bootstrap

MOST_NUMBERS = 2**22  # of one block of sign flips: 32 MB


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
    of_x = weights(torch.randint(n, (samples, tasks, n), generator=generator), n)
    of_y = weights(torch.randint(m, (samples, tasks, m), generator=generator), m)
    draws = torch.einsum("sti,tij,stj->st", of_x, wins, of_y).mean(-1)
    low, high = ends(draws, level)
    return Interval(float(wins.mean()), float(low), float(high))


def paired_difference(
    x: Tensor,
    y: Tensor,
    generator: Generator,
    samples: int = 2000,
    level: float = 0.95,
    statistic: Callable[[Tensor], Tensor] = lambda d: d.mean((-2, -1)),
) -> Interval:
    """What x has more than y when both saw the same random numbers: the mean of d_i = x_i − y_i, with its interval.

    x, y: `[tasks, seeds]`, seed i of both the same number; pairs are resampled within each task, so that luck which
    both shared cancels. The mean is the default because a seed that collapses counts; `pooled_iqm` is the other
    choice, statistic: `[*S, tasks, seeds]` → `[*S]`. Raises InputError for shapes that differ, fewer than 2 seeds, and
    scores that are not finite.

    >>> x = torch.tensor([[1.0, 5.0, 9.0, 3.0]])
    >>> paired_difference(x + 0.5, x, torch.Generator().manual_seed(0))
    Interval(estimate=0.5, low=0.5, high=0.5)
    """
    return stratified_bootstrap(_differences(x, y), statistic, generator, samples, level)


def sign_flip_p_value(x: Tensor, y: Tensor, generator: Generator, samples: int = 9999) -> float:
    """Two-sided p-value of "x and y are exchangeable", from flipping the signs of the paired differences at random.

    p = (1 + #{|Σ s_i·d_i| ≥ |Σ d_i|}) / (1 + samples), s_i = ±1; the smallest p is 1/(1 + samples). Under the null the
    names x and y may be exchanged within each pair, so the test keeps its level with any number of seeds; a bootstrap
    p-value would do so only with many. The statistic is the mean: an interquartile mean of flipped signs saturates
    where the differences are alike, and loses power just where the case is clear. Raises InputError as
    `paired_difference` does.

    >>> sign_flip_p_value(torch.ones(1, 12), torch.zeros(1, 12), torch.Generator().manual_seed(0)) < 0.01
    True
    """
    d = checked(_differences(x, y)).flatten()
    found = d.sum().abs()
    tolerance = 1e-12 * d.abs().sum()  # flips that leave |Σ d| as it is are ties, which rounding must not break
    block = max(1, MOST_NUMBERS // len(d))
    extreme = 0
    for start in range(0, samples, block):
        flips = torch.randint(2, (min(block, samples - start), len(d)), generator=generator) * 2 - 1
        extreme += int(((flips.double() @ d).abs() >= found - tolerance).sum())
    return (1 + extreme) / (1 + samples)


def _differences(x: Tensor, y: Tensor) -> Tensor:
    if x.ndim != 2 or x.shape != y.shape:
        raise InputError(
            f"scores have shapes {tuple(x.shape)} and {tuple(y.shape)}; pairs need one shape, [tasks, seeds]"
        )
    for scores in (x, y):
        refuse_not_finite(scores)
    return x.double().cpu() - y.double().cpu()


def _wins(x: Tensor, y: Tensor) -> Tensor:
    """1 where x_i > y_j, ½ where equal, else 0: `[tasks, n, m]`."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[0] != y.shape[0] or 0 in (*x.shape, *y.shape):
        raise InputError(
            f"scores have shapes {tuple(x.shape)} and {tuple(y.shape)}; give [tasks, seeds] with equal tasks"
        )
    for scores in (x, y):
        refuse_not_finite(scores)
    ours, theirs = x.double().cpu().unsqueeze(-1), y.double().cpu().unsqueeze(-2)
    return (ours > theirs).double() + 0.5 * (ours == theirs).double()
