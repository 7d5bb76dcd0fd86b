"""Closed forms of large groups, and plateau times, against enumeration, loops and integration."""

from __future__ import annotations

import itertools
import math
import re
from typing import get_args

import pytest
import torch

import etr
from etr import advantages, exact
from etr.errors import InputError
from etr.oracles import population
from etr.oracles.estimator import GradientMoments, gradient_moments
from toy_envs import ExactModel

BANDIT = ExactModel(3, 1, torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64))
CERTAIN = ExactModel(4, 1, torch.tensor([[0.0, 1.0, 0.0, 1.0]], dtype=torch.float64))
TREE = ExactModel(2, 2, torch.tensor([[0.1, 0.8, 0.3, 0.6]], dtype=torch.float64))
DEEP = ExactModel(3, 3, torch.rand(2, 27, generator=torch.Generator().manual_seed(5), dtype=torch.float64))


ESTIMATORS = [advantages.leave_one_out, advantages.group_center, advantages.group_zscore]


@pytest.mark.parametrize("estimate", ESTIMATORS)
@pytest.mark.parametrize("size", [2, 5])
def test_gain_is_the_share_that_enumeration_finds(estimate: advantages.Estimator, size: int) -> None:
    """Whatever the arms, the expected gradient of the first update is gain(p, G)·∇p."""
    logits = torch.randn((1, 1, 3), generator=torch.Generator().manual_seed(20), dtype=torch.float64)
    found: GradientMoments = gradient_moments(etr.get("reinforce"), BANDIT, logits, size, advantage=estimate)
    p = exact.expected_reward(logits, BANDIT)
    want = population.gain(estimate, p, size) * found.target
    torch.testing.assert_close(found.mean, want, rtol=0.0, atol=1e-13)


def test_population_forms_against_loops_and_large_groups() -> None:
    rates = torch.tensor([0.05, 0.5, 0.8], dtype=torch.float64)
    for i, p in enumerate(rates.tolist()):
        groups = list(itertools.product((0, 1), repeat=6))
        dead = sum(math.prod(p if r else 1 - p for r in g) for g in groups if len(set(g)) == 1)
        assert population.no_signal(rates, 6)[i].item() == pytest.approx(dead, rel=1e-12)
        rewards = torch.cat([torch.ones(round(1000 * p)), torch.zeros(round(1000 * (1 - p)))]).double()
        scores = advantages.group_zscore(rewards, torch.zeros(1000, dtype=torch.long))
        right, wrong = population.zscore_sizes(rates)
        assert (right[i].item(), wrong[i].item()) == pytest.approx((scores[0].item(), scores[-1].item()), rel=1e-12)
    large = population.gain(advantages.group_zscore, rates[1:], 600)
    torch.testing.assert_close(large, population.gain_limit(rates[1:]), rtol=5e-3, atol=0.0)
    slope = (2 * (rates + 1e-6).sqrt().arcsin() - 2 * (rates - 1e-6).sqrt().arcsin()) / 2e-6
    torch.testing.assert_close(population.gain_limit(rates), slope, rtol=1e-8, atol=0.0)


def test_plateau_times_are_the_integral_of_one_over_the_speed() -> None:
    """t = ∫ dp / (p(1−p))²·1/gain: dθ/dt = gain·p(1−p) and dp/dθ = p(1−p)."""
    gains = {
        "policy_gradient": lambda p: 1.0,
        "group_zscore": lambda p: (p * (1 - p)) ** -0.5,
        "log_success": lambda p: 1 / p,
    }
    for kind in get_args(population.Plateau):
        points, total = 100_000, 0.0
        for i in range(points):
            p = 0.05 + (0.9 - 0.05) * (i + 0.5) / points
            total += (0.9 - 0.05) / points / (gains[kind](p) * (p * (1 - p)) ** 2)
        assert population.plateau_time(kind, 0.05, 0.9) == pytest.approx(total, rel=1e-6)
    with pytest.raises(InputError, match=re.escape("rate 0 lies outside (0, 1)")):
        population.plateau_time("policy_gradient", 0.0, 0.9)
    with pytest.raises(InputError, match="did you mean 'log_success'"):
        population.plateau_time("log_succes", 0.1, 0.9)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a success rate lies outside"):
        population.gain(advantages.group_center, torch.tensor([1.2]), 4)
