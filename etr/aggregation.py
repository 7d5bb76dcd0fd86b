"""Floor 1: from per-token values to one number per run, with an explicit global denominator.

Splitting a batch into micro-batches (or over ranks) must not change the loss. So the divisor is computed once over
the whole batch by `global_denominator` and passed to `aggregate` for every part; the parts then simply add up.

| mode | value | used by |
|---|---|---|
| token-mean | Σ m·x / Σ m | PPO, DAPO, CISPO |
| seq-mean-token-mean | (1/B) Σ_i (1/T_i) Σ_t m·x | GRPO, GSPO, ETR |
| seq-mean-token-sum | (1/B) Σ_i Σ_t m·x | BNPO's script |
| seq-mean-token-sum-norm | (1/(B·L)) Σ_i Σ_t m·x, constant L | Dr. GRPO |
| local-token-mean | token-mean of each part, averaged over the parts | TRL's `bnpo`; depends on the split |

B counts responses with at least one kept token.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from etr.errors import InputError, unknown

Mode = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "local-token-mean"]
MODES: tuple[str, ...] = get_args(Mode)


def global_denominator(mask: Tensor, mode: str, length: int | None = None) -> Tensor:
    """The divisor for a whole batch, `[*R]`: kept tokens, responses, or responses·L (L: `length`, default T).

    For local-token-mean it is 1, the number of parts. Raises InputError when no token is kept.
    """
    check_mode(mode)
    count = mask.sum((-2, -1)) if mode == "token-mean" else mask.any(-1).sum(-1)
    if bool((count == 0).any()):
        raise InputError("response_mask keeps no token; give at least one response token in every run")
    if mode == "local-token-mean":
        return torch.ones_like(count)
    if mode == "seq-mean-token-sum-norm":
        return count * (length or mask.shape[-1])
    return count


def aggregate(
    x: Tensor,
    mask: Tensor,
    mode: str = "token-mean",
    denominator: Tensor | float | None = None,
    length: int | None = None,
) -> Tensor:
    """Reduce `x` `[*R, B, T]` to `[*R]` by the table above; padding never counts, whatever it holds.

    denominator: None for a whole batch; for a part of one, `global_denominator` of the whole
    (for local-token-mean: the number of parts). Raises InputError for an unknown mode.

    >>> x, mask = torch.tensor([[1.0, 1.0], [4.0, 9.9]]), torch.tensor([[True, True], [True, False]])
    >>> [round(aggregate(x, mask, mode).item(), 3) for mode in MODES]
    [2.0, 2.5, 3.0, 1.5, 2.0]
    """
    if denominator is None:
        denominator = global_denominator(mask, mode, length)
    check_mode(mode)
    per_row = torch.where(mask, x, 0.0).sum(-1)
    if mode == "seq-mean-token-mean":
        per_row = per_row / mask.sum(-1).clamp(min=1)
    total = per_row.sum(-1)
    if mode == "local-token-mean":
        total = total / mask.sum((-2, -1)).clamp(min=1)
    return total / denominator


def check_mode(mode: str) -> None:
    """Raise InputError for an unknown mode, naming the nearest."""
    if mode not in MODES:
        raise InputError(unknown("aggregation", mode, MODES))
