"""Section 5: what a group advantage optimises when rewards are 0 or 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

import etr
from etr.advantages import Estimator, group_center, group_zscore, leave_one_out
from etr.oracles import population
from etr.oracles.estimator import gradient_moments
from etr.reproduce.base import Measured, Statement, Target, exactly, printed, published
from toy_envs import ExactModel

GROUP_SIZES = (4, 8, 16)
RATES = (0.05, 0.5)
COIN = ExactModel(2, 1, torch.tensor([[1.0, 0.0]], dtype=torch.float64))


def at_rate(p: float) -> Tensor:
    """Logits of two arms, the first right, with success rate p."""
    return torch.tensor([[[math.log(p / (1 - p)), 0.0]]], dtype=torch.float64)


def shares(estimator: Estimator, p: float) -> list[float]:
    """|E g| / |∇p| of the first update for each group size, by enumeration with the real loss."""
    found = []
    for size in GROUP_SIZES:
        moments = gradient_moments(etr.get("dr_grpo"), COIN, at_rate(p), size, advantage=estimator)
        found.append(float(moments.mean.norm() / moments.target.norm() * moments.cosine))
    return found


def unbiased() -> list[Measured]:
    """Share of ∇J in the mean gradient with leave-one-out baselines, for each rate of `RATES`."""
    return exactly(*(share for p in RATES for share in shares(leave_one_out, p)))


def including_itself() -> list[Measured]:
    """The same with the mean of the whole group as baseline, at success rate 0.3."""
    return exactly(*shares(group_center, 0.3))


def deviation_scaling() -> list[Measured]:
    """The gain of z-scores as a share of 1/√(p(1−p)), and the largest gap between enumeration and closed form."""
    found, gap = [], 0.0
    for p in (0.5, 0.05):
        rate = torch.tensor(p, dtype=torch.float64)
        limit = float(population.gain_limit(rate))
        enumerated = shares(group_zscore, p)
        closed = [float(population.gain(group_zscore, rate, size)) for size in GROUP_SIZES]
        gap = max(gap, *(abs(a - b) for a, b in zip(enumerated, closed, strict=True)))
        found += [gain / limit for gain in enumerated]
    return exactly(*found, gap)


def arcsine() -> list[Measured]:
    """Slope of 2·arcsin √p over 1/√(p(1−p)), and the gain of z-scores at G = 500 over the same, p = ½."""
    p, h = torch.linspace(0.02, 0.98, 49, dtype=torch.float64), 1e-6
    slope = (2 * (p + h).sqrt().arcsin() - 2 * (p - h).sqrt().arcsin()) / (2 * h)
    half = torch.tensor(0.5)
    large = population.gain(group_zscore, half, 500) / population.gain_limit(half)
    return exactly(float((slope / population.gain_limit(p) - 1).abs().max()), float(large))


def silent_groups() -> list[Measured]:
    """The chance of a group whose advantages are all 0, counted over all outcomes rather than by the formula."""
    found = []
    for p in RATES:
        for size in GROUP_SIZES:
            weights, rewards = population.success_counts(torch.tensor(p, dtype=torch.float64), size)
            dead = (group_zscore(rewards, torch.zeros(size, dtype=torch.long)) == 0).all(-1)
            found.append(float(weights[dead].sum()))
    return exactly(*found)


def advantage_sizes() -> list[Measured]:
    """z-scores of groups of 1000 against the formula; Σ|A|/G against 2√(p(1−p)); the rate where that is largest."""
    right = torch.arange(1, 1000)
    rates = right.double() / 1000
    rewards = (torch.arange(1000) < right.unsqueeze(-1)).double()
    scores = group_zscore(rewards, torch.zeros(1000, dtype=torch.long))
    high, low = population.zscore_sizes(rates)
    size_error = torch.maximum((scores[:, 0] - high).abs(), (scores[:, -1] - low).abs()).max()
    total = scores.abs().mean(-1)
    total_error = (total - 2 * (rates * (1 - rates)).sqrt()).abs().max()
    return exactly(float(size_error), float(total_error), float(rates[total.argmax()]))


def table(rows: dict[float, tuple[str, ...]]) -> dict[str, str]:
    """Names and printed numbers for every rate and group size."""
    return {f"p = {p:g}, G = {g}": text for p, row in rows.items() for g, text in zip(GROUP_SIZES, row, strict=True)}


GROUPS = (
    Statement(
        "rloo-unbiased", 5, "Leave-one-out advantages are unbiased: E g = ∇p for any G.", "2402.14740", "reconstructed",
        published(dict.fromkeys(table(dict.fromkeys(RATES, ("1", "1", "1"))), 1.0), 1e-12), unbiased,
        note="Every group enumerated, through `etr.policy_loss`.",
    ),
    Statement(
        "mean-with-itself", 5, "A mean that includes the response itself leaves (G−1)/G of the gradient.",
        "2503.20783", "reconstructed",
        published({"G = 4": 0.75, "G = 8": 0.875, "G = 16": 0.9375}, 1e-12), including_itself,
    ),
    Statement(
        "deviation-scaling", 5, "Finite groups reach only a share of the limit of standard-deviation scaling.",
        "2402.03300", "reconstructed",
        (*printed(table({0.5: ("0.808", "0.928", "0.967"), 0.05: ("0.373", "0.539", "0.712")})),
         Target("enumeration − closed form", 1e-12, relation="<=")), deviation_scaling,
    ),
    Statement(
        "arcsine", 5, "G → ∞: standard-deviation scaling ascends 2 arcsin √p.", "2402.03300", "reconstructed",
        (Target("largest relative error of the slope", 1e-6, relation="<="),
         *published({"share at G = 500": 1.0}, 0.002)),
        arcsine,
    ),
    Statement(
        "silent-groups", 5, "A group has no signal with probability p^G + (1−p)^G.", "counting", "reconstructed",
        printed(table({0.05: ("0.815", "0.663", "0.440"), 0.5: ("0.125", "0.0078", "3e-5")})), silent_groups,
    ),
    Statement(
        "advantage-sizes", 5,
        "Right answers get √((1−p)/p), wrong ones −√(p/(1−p)); Σ|A|/G = 2√(p(1−p)), largest at ½.", "2402.03300",
        "reconstructed",
        (Target("largest error of the sizes", 1e-10, relation="<="),
         Target("largest error of the sum", 1e-12, relation="<="),
         Target("rate of the largest sum", 0.5)), advantage_sizes,
    ),
)  # fmt: skip
