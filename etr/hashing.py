"""Floor 1: numbers that look random and come from the data alone, because the core has no random generator."""

from __future__ import annotations

from torch import Tensor

PRIME = 2**31 - 1  # products of two numbers below it fit into 64 bits


def congruential(number: Tensor, factor: int, more: Tensor | int) -> Tensor:
    """One step of a linear congruential generator: (number·factor + more) mod PRIME, int64.

    >>> import torch
    >>> congruential(torch.tensor([1, 2**31]), 16807, 3)
    tensor([16810, 16810])
    """
    return (number.remainder(PRIME) * factor + more) % PRIME


def mixed(number: Tensor) -> Tensor:
    """A number in [0, PRIME) for each integer, such that near ones are far apart."""
    for factor in (48271, 69621):
        number = congruential(number, factor, 12345)
        number = number ^ (number >> 15)
    return number % PRIME
