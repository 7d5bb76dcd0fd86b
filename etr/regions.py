"""Floor 1: trust regions as intervals of the ratio. This is where methods differ most; the heart of the project."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.batch import Region


def interval(eps_low: Tensor, eps_high: Tensor) -> Region:
    """[1 − ε_low, 1 + ε_high] from half-widths that broadcast to `[*R, B, T]`."""
    return Region(1 - eps_low, 1 + eps_high)


def fixed(eps_low: float, eps_high: float, like: Tensor) -> Region:
    """The same interval for every token (PPO, GRPO, DAPO), in the dtype of `like`.

    Like any number of an objective, a half-width may also be a tensor `[*R, 1, 1]`, one for each run.

    >>> fixed(0.25, 0.5, torch.zeros(2, 3))
    Region(low=tensor(0.7500), high=tensor(1.5000))
    """
    return interval(number(eps_low, like), number(eps_high, like))


def unbounded(like: Tensor) -> Region:
    """No region: every ratio in [0, ∞) is allowed."""
    return Region(like.new_zeros(()), like.new_full((), torch.inf))


def elastic(scale: Tensor, eps_low: float, eps_high: float, eps_min: float, eps_max: float) -> Region:
    """ε_i = clamp(ε·scale_i, ε_min, ε_max) for each bound; scale carries no gradient."""
    least, most = number(eps_min, scale), number(eps_max, scale)
    low, high = ((number(eps, scale) * scale).clamp(least, most) for eps in (eps_low, eps_high))
    return interval(low, high)


def number(value: float | Tensor, like: Tensor) -> Tensor:
    """A field as a tensor of full precision: `torch.where` of two plain numbers is in single precision."""
    return torch.as_tensor(value, dtype=like.dtype, device=like.device)
