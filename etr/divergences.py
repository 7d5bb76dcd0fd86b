"""Floor 1: how far the probability of one token may go: divergences of two distributions seen in few buckets.

Two buckets, the sampled token and all others, need no more than its log-probs. With p = π_old(token), r = π/π_old:

    kl    p·log(1/r) + (1−p)·log((1−p)/(1−rp))    KL(π_old ‖ π) of the two buckets
    tv    p·|r − 1|                               total variation
    chi2  p·(r − 1)²/(1 − p)                      χ²(π ‖ π_old)

`ball` turns "divergence ≤ δ" into an interval of ratios. All is in double precision and without gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("kl", "tv", "chi2")
STEPS = 60  # halvings: the interval ends up below what double precision can tell apart
TINY = 1e-12  # the least probability of a bucket inside a logarithm


def binary(log_p: Tensor, log_ratio: Tensor, kind: str) -> Tensor:
    """The divergence of the two buckets from log p and log r, in the shape of both; infinite where r·p > 1 would be."""
    p, r = log_p.double().exp(), log_ratio.double().exp()
    if kind == "tv":
        return p * (r - 1).abs()
    rest = -torch.expm1(log_p.double())  # 1 − p, exact also where p is nearly 1
    if kind == "chi2":
        return p * (r - 1).square() / rest.clamp(min=1e-300)
    new_rest = 1 - (p * r).clamp(max=1.0)
    others = rest * (rest / new_rest).log()
    return torch.where(rest > 0, others, 0.0) - p * log_ratio.double()


def ball(log_p: Tensor, delta: float | Tensor, kind: str, *, capped: bool = True) -> tuple[Tensor, Tensor]:
    """The ratios [low, high] ∋ 1 whose divergence is at most `delta` (or as far as probabilities reach), like `log_p`.

    capped: high ≤ 1/p, beyond which no ratio can be; KL's root lies below that by itself.

    >>> low, high = ball(torch.tensor([0.1, 0.5]).double().log(), 0.05, "kl")
    >>> [round(x, 3) for x in (*low.tolist(), *high.tolist())]
    [0.313, 0.692, 2.201, 1.308]
    """
    with torch.no_grad():
        log_p = log_p.double().clamp(min=-600.0, max=0.0)  # so that 1/p is finite
        p = log_p.exp()
        if kind == "kl":
            return _kl_ball(log_p, delta)
        width = delta / p if kind == "tv" else (delta * -torch.expm1(log_p) / p).sqrt()
        high = 1 + width
        return (1 - width).clamp(min=0.0), torch.minimum(high, 1 / p) if capped else high


def _kl_ball(log_p: Tensor, delta: float | Tensor) -> tuple[Tensor, Tensor]:
    """Both roots by bisection: r itself below 1, log r in [0, −log p] above 1, where r may be huge."""
    inside, outside = torch.ones_like(log_p), torch.zeros_like(log_p)
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        far = binary(log_p, middle.log(), "kl") > delta
        inside, outside = torch.where(far, inside, middle), torch.where(far, middle, outside)
    low = inside
    inside, outside = torch.zeros_like(log_p), -log_p
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        far = binary(log_p, middle, "kl") > delta
        inside, outside = torch.where(far, inside, middle), torch.where(far, middle, outside)
    return low, inside.exp()


def bucketed(log_p: Tensor, log_q: Tensor, kind: str) -> Tensor:
    """Divergence of two distributions in K + 1 buckets, K tokens `[*, K]` and the rest: KL(p ‖ q) or TV, `[*]`."""
    p, q = (_with_rest(table.double()) for table in (log_p, log_q))
    if kind == "tv":
        return (p - q).abs().sum(-1) / 2
    return (p * (p.clamp(min=TINY) / q.clamp(min=TINY)).log()).sum(-1)


def _with_rest(log_probs: Tensor) -> Tensor:
    chances = log_probs.exp()
    return torch.cat([chances, (1 - chances.sum(-1, keepdim=True)).clamp(min=0.0)], -1)
