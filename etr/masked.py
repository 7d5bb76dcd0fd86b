"""Floor 1: statistics over the kept tokens of a batch, run by run: values `[*R, B, T]`, results `[*R, 1, 1]` or a mask.

In double precision where sums are taken, so that equal values have a spread of 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

BATCH = (-2, -1)  # responses and tokens of a run


def mean(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] = BATCH) -> Tensor:
    """Mean of the kept values, 0 where nothing is kept; dimensions stay, with size 1."""
    count = mask.sum(dim, keepdim=True).clamp(min=1)
    return (torch.where(mask, values, 0.0).double().sum(dim, keepdim=True) / count).to(values.dtype)


def std(values: Tensor, mask: Tensor, dim: int | tuple[int, ...] = BATCH, ddof: int = 0) -> Tensor:
    """Standard deviation of the kept values, by default of the population; 0 where all are equal."""
    centred = values.double() - mean(values.double(), mask, dim)
    count = (mask.sum(dim, keepdim=True) - ddof).clamp(min=1)
    spread = (torch.where(mask, centred.square(), 0.0).sum(dim, keepdim=True) / count).sqrt().to(values.dtype)
    same = _filled(values, mask, -torch.inf).amax(dim, keepdim=True) <= _filled(values, mask, torch.inf).amin(
        dim, keepdim=True
    )
    return torch.where(same, 0.0, spread)  # the mean of equal values may be rounded


def least(values: Tensor, mask: Tensor) -> Tensor:
    """The smallest kept value of a run; 0 where nothing is kept."""
    return torch.where(
        mask.any(-1, keepdim=True).any(-2, keepdim=True),
        _filled(values, mask, torch.inf).amin(BATCH, keepdim=True),
        0.0,
    )


def largest(values: Tensor, mask: Tensor) -> Tensor:
    """The largest kept value of a run; 0 where nothing is kept."""
    return -least(-values, mask)


def unit(values: Tensor, mask: Tensor) -> Tensor:
    """(x - min) / (max - min) over the kept values of a run, 0 where all are equal."""
    low, high = least(values, mask), largest(values, mask)
    return torch.where(mask & (high > low), (values - low) / torch.where(high > low, high - low, 1.0), 0.0)


def quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """The q-quantile of the kept values of a run by linear interpolation, as numpy's; 0 where nothing is kept."""
    ordered = _filled(values, mask, torch.inf).flatten(-2).sort(-1).values
    count = mask.sum(BATCH).unsqueeze(-1)
    place = q * (count - 1).clamp(min=0).to(torch.float64)
    low, high = place.floor().long(), place.ceil().long()
    a, b = ordered.gather(-1, low), ordered.gather(-1, high)
    value = a + (b - a) * (place - low).to(values.dtype)
    return torch.where(count > 0, torch.where(low == high, a, value), 0.0).unsqueeze(-1)


def top(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Bool mask of the `count` `[*R, 1, 1]` largest kept values of a run; between equals the first in the batch."""
    order = _filled(values, mask, -torch.inf).flatten(-2).sort(stable=True, dim=-1, descending=True).indices
    rank: Tensor = order.argsort(-1).unflatten(-1, values.shape[-2:])
    return mask & (rank < count)


def top_shares(values: Tensor, mask: Tensor, count: Tensor) -> Tensor:
    """Shares in [0, 1] that add up to `count` `[*R, 1, 1]`: 1 for the largest kept values of a run, 0 for the others;
    values that tie at the cut share the places left, so that no order of responses matters. In double precision."""
    held = _filled(values, mask, -torch.inf)
    ordered = held.flatten(-2).sort(-1, descending=True).values
    cut = ordered.gather(-1, (count.flatten(-2) - 1).clamp(0, ordered.shape[-1] - 1))
    above, tied = (mask & found for found in (held > cut.unsqueeze(-1), held == cut.unsqueeze(-1)))
    left = count - above.sum(BATCH, keepdim=True)
    share = left / tied.sum(BATCH, keepdim=True).clamp(min=1).double()
    return torch.where(tied, share, above.double())


def _filled(values: Tensor, mask: Tensor, fill: float) -> Tensor:
    return torch.where(mask, values, fill)
