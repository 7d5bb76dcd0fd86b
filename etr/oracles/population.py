"""What a group advantage optimises when rewards are 0 or 1: closed forms in the success rate p and the group size G.

With rewards alone in the advantage, the first update's expected gradient is gain(p, G)·∇p: the direction is the plain
policy gradient's within a prompt, and `gain` weighs prompts against each other.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from etr.advantages import Estimator
from etr.errors import InputError, unknown

Plateau = Literal["policy_gradient", "group_zscore", "log_success"]


def success_counts(success_rate: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """The number of right answers in a group: P(C = k) = C(G, k) p^k (1−p)^{G−k}, `[*p, G+1]`, and rewards `[G+1, G]`.

    Row k of the rewards has k ones. Raises InputError for a rate outside [0, 1].
    """
    if bool(((success_rate < 0) | (success_rate > 1)).any()):
        raise InputError("a success rate lies outside [0, 1]; give probabilities")
    ways = torch.tensor([math.comb(group_size, k) for k in range(group_size + 1)], dtype=torch.float64)
    k = torch.arange(group_size + 1, dtype=torch.float64)
    p = success_rate.double().unsqueeze(-1)
    return ways * p**k * (1 - p) ** (group_size - k), (torch.arange(group_size) < k.unsqueeze(-1)).double()


def gain(estimator: Estimator, success_rate: Tensor, group_size: int) -> Tensor:
    """dJ_eff/dp = E[Σ_i A_i (R_i/p − (1−R_i)/(1−p))]/G for 0 < p < 1, `[*p]`: 1 for an unbiased estimator.

    E[∇log π | right] = ∇p/p and E[∇log π | wrong] = −∇p/(1−p), so the expected gradient is gain·∇p. Exact at any G.
    """
    weights, rewards = success_counts(success_rate, group_size)
    advantages = estimator(rewards, torch.zeros(group_size, dtype=torch.long))
    right = (advantages * rewards).sum(-1) / group_size
    wrong = (advantages * (1 - rewards)).sum(-1) / group_size
    p = success_rate.double()
    return (weights * right).sum(-1) / p - (weights * wrong).sum(-1) / (1 - p)


def gain_limit(success_rate: Tensor) -> Tensor:
    """1/√(p(1−p)), the gain of group z-scores as G → ∞, `[*p]`: the derivative of 2·arcsin √p."""
    p = success_rate.double()
    return (p * (1 - p)).rsqrt()


def no_signal(success_rate: Tensor, group_size: int) -> Tensor:
    """p^G + (1−p)^G: the chance that all G rewards agree, so that the group teaches nothing, `[*p]`."""
    p = success_rate.double()
    return p**group_size + (1 - p) ** group_size


def zscore_sizes(success_rate: Tensor) -> tuple[Tensor, Tensor]:
    """Population z-scores of a right and a wrong answer: √((1−p)/p) and −√(p/(1−p)), `[*p]` each."""
    odds = success_rate.double() / (1 - success_rate.double())
    return odds.rsqrt(), -odds.sqrt()


def plateau_time(kind: Plateau, start: float, end: float) -> float:
    """Time of gradient flow from success rate `start` to `end` with one parameter, p = σ(θ); derived here.

    policy_gradient (ascends p): [2 ln(p/(1−p)) + (2p−1)/(p(1−p))], about 1/start;
    group_zscore (2 arcsin √p): [2(2p−1)/√(p(1−p))], about 2/√start;
    log_success (log p, MaxRL): [1/(1−p) + ln(p/(1−p))], about ln 1/start. Each between the two rates, in units of 1/lr.
    Raises InputError for another kind and rates outside (0, 1).
    """
    for rate in (start, end):
        if not 0 < rate < 1:
            raise InputError(f"the success rate {rate:g} lies outside (0, 1), where gradient flow never arrives")
    return _clock(kind, end) - _clock(kind, start)


def _clock(kind: str, p: float) -> float:
    if kind == "policy_gradient":
        return 2 * math.log(p / (1 - p)) + (2 * p - 1) / (p * (1 - p))
    if kind == "group_zscore":
        return 2 * (2 * p - 1) / math.sqrt(p * (1 - p))
    if kind == "log_success":
        return 1 / (1 - p) + math.log(p / (1 - p))
    raise InputError(unknown("kind of plateau", kind, get_args(Plateau)))
