"""How much of a gradient is signal: from independent pieces of the batch, without knowing the true gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch
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


def member_signal(weights: Tensor, index: Tensor, logits: Tensor) -> GradientSignal:
    """Signal and noise of a table's gradient, from the G members of every group as pieces: `[*R]`, float64.

    weights: ∂loss/∂ log π of each token at `logits`, `[*R, P·G, T]`; index: state·V + token, `[*R, P, G, T]`; logits:
    `[*R, P, S, V]`. Piece i is G times the gradient of answer i to every prompt; since ∂ log π(a)/∂z = e_a − π, no
    gradient is kept. E|ḡ|² is exact, its parts are not quite: members share their group's mean and spread. For
    rewards minus the group's mean the signal is too large by the factor 1 + 1/(G−1)²; for z-scores it was 0.85 to 1.09
    of the exact one at G = 4 to 8 (all groups of two bandits of 3 arms enumerated). Raises InputError for G = 1.
    """
    members = index.shape[-2]
    policy = logits.double().softmax(-1)
    weight = weights.double().reshape(index.shape).flatten(-2)
    places = index.flatten(-2)
    pushed = torch.zeros_like(policy).flatten(-2).scatter_add(-1, places, weight).view_as(policy)
    whole = (pushed - pushed.sum(-1, keepdim=True) * policy).square().sum((-3, -2, -1))
    lengths = 1 - 2 * policy + policy.square().sum(-1, keepdim=True)  # |e_a − π|²: an answer meets a state once
    alone = (weight.square() * lengths.flatten(-2).gather(-1, places)).sum((-2, -1))
    return signal_from_norms(members * alone, whole, members)
