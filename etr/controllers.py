"""Floor 1: numbers that an objective carries from step to step and uses as coefficients, one for each run.

State is `[*R]` in double precision, so that small steps add up; inside `prepare` it is `[*R, 1, 1]`, which broadcasts
against tokens and against fields that differ from run to run; a loss reads it from a column `[*R, B]`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def start(value: float, run_shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The first value of every run, float64 `[*R]`."""
    return torch.full(run_shape, value, dtype=torch.float64, device=device)


def per_run(state: Tensor) -> Tensor:
    """`[*R]` to `[*R, 1, 1]`."""
    return state[..., None, None]


def carried(value: Tensor) -> Tensor:
    """`[*R, 1, 1]` to `[*R]`."""
    return value[..., 0, 0]


def as_column(value: Tensor, mask: Tensor) -> Tensor:
    """`[*R, 1, 1]`, repeated for every response: `[*R, B]`."""
    return value.squeeze(-1).expand(mask.shape[:-1])


def from_column(column: Tensor, like: Tensor) -> Tensor:
    """A column `[*R, B]` as a factor of tokens `[*R, B, 1]`, in the dtype of `like`."""
    return column.unsqueeze(-1).to(like.dtype)


def added(penalty: Tensor | None, more: Tensor) -> Tensor:
    """The sum of a base's penalty, which may be None, and another one."""
    return more if penalty is None else penalty + more
