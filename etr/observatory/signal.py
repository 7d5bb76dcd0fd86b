"""How much of a gradient is signal: from independent pieces of the batch, without knowing the true gradient."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from etr.errors import InputError


class GradientSignal(NamedTuple):
    """signal: unbiased estimate of |E g|²; noise: of E|ḡ − E g|², the variance of the whole batch's mean gradient ḡ.

    Either can come out negative in one batch; average them over steps before taking their ratio.
    """

    signal: Tensor
    noise: Tensor

    @property
    def ratio(self) -> Tensor:
        """|E g|² / E|ḡ − E g|²: above 1 a batch shows more signal than noise."""
        return self.signal / self.noise


def gradient_signal(pieces: Tensor) -> GradientSignal:
    """Signal and noise from the gradients g_1 … g_n of independent, equally large pieces, `[*R, n, D]` → `[*R]`.

    |E g|² is estimated by the mean of g_i·g_j over pairs i ≠ j, noise by Σ|g_i − ḡ|² / (n(n − 1)). Pieces are
    independent when they share no group: prompts drawn at random, or whole rollout batches of one policy.
    Raises InputError for fewer than two pieces.
    """
    if pieces.ndim < 2 or pieces.shape[-2] < 2:
        raise InputError(f"pieces have shape {tuple(pieces.shape)}; give the gradients of at least 2 pieces as [n, D]")
    pieces = pieces.double()
    n = pieces.shape[-2]
    squares, whole = pieces.square().sum((-2, -1)), pieces.sum(-2).square().sum(-1)
    signal = (whole - squares) / (n * (n - 1))
    return GradientSignal(signal, squares / n**2 - signal / n)


def signal_from_norms(piece: Tensor, whole: Tensor, n: int) -> GradientSignal:
    """The same from two squared norms, |g_1|² of one piece and |ḡ|² of the mean of all n: no gradient is kept.

    E|g_1|² = |E g|² + v and E|ḡ|² = |E g|² + v/n are solved for |E g|² and v/n, as for the gradient noise scale of
    McCandlish et al. (1812.06162; derived here). Noisier than `gradient_signal`, but free where gradients are
    accumulated over micro-batches. Raises InputError for fewer than two pieces.
    """
    if n < 2:
        raise InputError(f"the batch has {n} piece; signal and noise can be told apart from 2 on")
    signal = (n * whole - piece) / (n - 1)
    return GradientSignal(signal, whole - signal)
