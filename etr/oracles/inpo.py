"""INPO: no-regret self-play in a preference game, where no reward need exist (Zhang et al., 2407.00617).

RECONSTRUCTED from the abstract and online mirror descent. A table P(i ≻ j) with P + Pᵀ = 1; τ pulls to π_ref:

    π_{t+1}(y) ∝ π_t(y)^{1−τ/η} · π_ref(y)^{τ/η} · exp(P(y ≻ π_t)/η)                                    `mirror_step`
    h(y, y') = ln π(y)/π(y') − (τ/η) ln π_ref(y)/π_ref(y') − (1−τ/η) ln π_t(y)/π_t(y')                    `gap`
    L = E_{y,y'∼π_t} (h(y, y') − (P(y ≻ π_t) − P(y' ≻ π_t))/η)²,   0 exactly at π_{t+1}                   `loss`
    L = const + E (h(y_w, y_l) − 1/(2η))²  over pairs whose winner is drawn from P: needs no P(y ≻ π_t)   `pair_loss`
"""

from __future__ import annotations

from torch import Tensor


def win_rate(log_policy: Tensor, prefers: Tensor) -> Tensor:
    """P(y ≻ π) = Σ_{y'} π(y') P(y ≻ y'), `[*R, V]`; under π itself its mean is ½."""
    return (prefers * log_policy.exp().unsqueeze(-2)).sum(-1)


def mirror_step(log_policy: Tensor, log_ref: Tensor, prefers: Tensor, eta: float, tau: float = 0.0) -> Tensor:
    """ln π_{t+1}, `[*R, V]`. Without τ the mean of π_1 … π_T is nearly a Nash policy: exploitability O(√(ln V/T))."""
    kept = 1 - tau / eta
    return (kept * log_policy + tau / eta * log_ref + win_rate(log_policy, prefers) / eta).log_softmax(-1)


def gap(log_new: Tensor, log_policy: Tensor, log_ref: Tensor, eta: float, tau: float = 0.0) -> Tensor:
    """h(y, y') of a new policy, `[*R, V, V]`."""
    score = log_new - tau / eta * log_ref - (1 - tau / eta) * log_policy
    return score.unsqueeze(-1) - score.unsqueeze(-2)


def loss(log_new: Tensor, log_policy: Tensor, log_ref: Tensor, prefers: Tensor, eta: float, tau: float = 0.0) -> Tensor:
    """The squared error with known win rates, `[*R]`."""
    wins = win_rate(log_policy, prefers)
    wanted = (wins.unsqueeze(-1) - wins.unsqueeze(-2)) / eta
    error = (gap(log_new, log_policy, log_ref, eta, tau) - wanted).square()
    return (_pairs(log_policy) * error).sum((-2, -1))


def pair_loss(
    log_new: Tensor, log_policy: Tensor, log_ref: Tensor, prefers: Tensor, eta: float, tau: float = 0.0
) -> Tensor:
    """The same up to a constant from pairs (winner, loser) alone, in expectation, `[*R]`."""
    error = (gap(log_new, log_policy, log_ref, eta, tau) - 1 / (2 * eta)).square()
    return (2 * _pairs(log_policy) * prefers * error).sum((-2, -1))  # either of the two may be the winner


def exploitability(policy: Tensor, prefers: Tensor) -> Tensor:
    """max_y P(y ≻ π) − ½, `[*R]`: 0 at a Nash policy of the symmetric game."""
    return (prefers * policy.unsqueeze(-2)).sum(-1).amax(-1) - 0.5


def _pairs(log_policy: Tensor) -> Tensor:
    probs = log_policy.exp()
    return probs.unsqueeze(-1) * probs.unsqueeze(-2)
