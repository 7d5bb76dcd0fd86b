"""Floor 6: group statistics read back from advantages, for hosts that drop the rewards before the loss.

A group of G rewards that are 0 or 1 has G + 1 possible success counts k. An estimator that looks at one group at a time
gives its successes and its failures one advantage each, so it is a table of G + 1 rows, and an advantage leads back to
its row: exactly, with every eps and either convention of the standard deviation, because the estimator itself fills the
table. Whatever would make two rows alike is refused before training starts; an advantage that is in no row (a reward
between two others, a group of another size) is refused where it occurs.

That the rewards are 0 or 1 cannot be seen here, as long as a group has no more than two of them: a z-score of rewards 0
and 0.5, or of -1 and 1, is the same as of 0 and 1. Whoever uses this has to look at the rewards where they are known.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from etr.advantages import Estimator
from etr.errors import InputError
from etr.groups import GroupStats

ROUNDING = 1e-5  # of single precision through a sum over a group; neighbouring counts differ by 1e-2 up to G = 64
WHY = "group statistics cannot be recovered from the advantages"


@dataclass(frozen=True, eq=False)
class Recovery:
    """The table of one estimator and group size: counts k `[N]` by advantage `[N]`, sorted; 0 < k < G.

    A group without signal (all advantages 0) gets variance 0, which is exact, and mean 0: whether all of its answers
    were right or wrong leaves no trace, and it has no gradient.
    """

    size: int
    advantages: Tensor
    counts: Tensor

    def __call__(self, advantages: Tensor, mask: Tensor) -> GroupStats:
        """Statistics `[B]` from advantages `[B, T]` and bool mask `[B, T]`. InputError for an unknown advantage."""
        rows = row_values(advantages, mask).double()
        place = torch.searchsorted(self._table(rows), rows).clamp(max=len(self.advantages) - 1)
        below = (place - 1).clamp(min=0)
        table = self._table(rows)
        nearest = torch.where((table[below] - rows).abs() <= (table[place] - rows).abs(), below, place)
        dead = rows == 0
        wrong = ~dead & ~((table[nearest] - rows).abs() <= ROUNDING * rows.abs())
        if bool(wrong.any()):
            raise InputError(
                f"{WHY}: {rows[wrong][0].item():g} is no advantage of {self.size} rewards that are 0 or 1; "
                "some reward was neither, or a group had another size: use the trainer that carries the true statistics"
            )
        share = torch.where(dead, 0.0, self.counts.to(rows)[nearest] / self.size)
        return GroupStats(
            share.to(advantages.dtype),
            (share * (1 - share)).to(advantages.dtype),
            torch.full_like(share, self.size).to(advantages.dtype),
        )

    def _table(self, like: Tensor) -> Tensor:
        return self.advantages.to(like.device)


def row_values(advantages: Tensor, mask: Tensor) -> Tensor:
    """The one advantage of each response, `[B]`, from `[B, T]`: 0 where no token is kept. InputError for two."""
    kept = torch.where(mask, advantages, 0.0)
    row = kept.gather(-1, kept.abs().argmax(-1, keepdim=True))
    if bool((mask & (kept != row)).any()):
        raise InputError(f"{WHY}: tokens of one response have several; use an advantage estimator of whole responses")
    return row.squeeze(-1)


def recovery(estimator: Estimator, size: int) -> Recovery:
    """The table of an estimator for groups of that size. Raises InputError when it cannot be read backwards."""
    if size < 2:
        raise InputError(f"{WHY}: a group has {size} responses; sample at least 2 answers to a prompt")
    found = _pairs(estimator, size)
    beside = _pairs(estimator, size, beside=True)
    if not torch.allclose(found, beside, rtol=ROUNDING, atol=0.0):
        raise InputError(f"{WHY}: the estimator looks beyond the group; use one that does not, such as group_zscore")
    advantages, order = found.double().flatten().sort()
    apart = advantages.diff().abs() > 4 * ROUNDING * torch.maximum(advantages[1:].abs(), advantages[:-1].abs())
    if bool((advantages == 0).any()) or not bool(apart.all()):
        raise InputError(f"{WHY}: the estimator gives different groups of {size} the same one")
    return Recovery(size, advantages, torch.arange(1, size).repeat_interleave(2)[order])


def _pairs(estimator: Estimator, size: int, beside: bool = False) -> Tensor:
    """Advantages of a failure and of a success for k = 1 … G − 1, `[G − 1, 2]`; beside: with another group around."""
    place = torch.arange(size)
    rewards = (place >= size - torch.arange(1, size)[:, None]).float()  # failures first
    ids = torch.zeros(size, dtype=torch.long)
    if beside:
        rewards, ids = torch.cat([rewards, (place % 2).float().expand_as(rewards)], -1), torch.cat([ids, ids + 1])
    return estimator(rewards, ids)[:, [0, size - 1]]
