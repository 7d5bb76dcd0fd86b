"""Many numbers to one: pass@k, interquartile mean, area under a curve."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from etr.errors import InputError
from etr.stats.checks import refuse_not_finite


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
    refuse_not_finite(x)
    cut = x.shape[dim] // 4
    return x.sort(dim).values.narrow(dim, cut, x.shape[dim] - 2 * cut).mean(dim)


def pooled_iqm(scores: Tensor) -> Tensor:
    """Interquartile mean over all environments and seeds together: `[*S, strata, seeds]` → `[*S]` (2108.13264)."""
    return iqm(scores.flatten(-2))


def area_under_curve(values: Tensor, steps: Sequence[int]) -> Tensor:
    """Mean height of a curve between its first and its last step: `[*P, steps]` → `[*P]`, in the unit of the values.

    Trapezoids, Σ_i (t_{i+1} − t_i)·(v_i + v_{i+1})/2 / (t_n − t_1), so that uneven steps count by their length; a
    curve of one point is that point. Raises InputError unless there is one value per step and steps increase.

    >>> area_under_curve(torch.tensor([0.0, 1.0, 1.0]), steps=[0, 1, 3])
    tensor(0.8333, dtype=torch.float64)
    """
    at = torch.tensor(steps, dtype=torch.float64)
    if values.ndim == 0 or values.shape[-1] != len(steps) or len(steps) == 0:
        raise InputError(f"values have shape {tuple(values.shape)} for {len(steps)} steps; give one value per step")
    widths = at.diff()
    if not bool((widths > 0).all()):
        raise InputError("the steps of a curve must increase; sort them and leave out repetitions")
    values = values.double().cpu()
    if len(steps) == 1:
        return values[..., 0]
    return ((values[..., 1:] + values[..., :-1]) / 2 * widths).sum(-1) / (at[-1] - at[0])
