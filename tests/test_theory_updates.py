"""Updates of the theory entries: variance-reduced policy gradients and the hybrid natural policy gradient."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from etr import exact
from etr.oracles import hnpg, igt
from toy_envs import ExactModel


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Variance-reduced policy gradients ------------------------------------------------------------------------------------

BANDIT = ExactModel(3, 1, torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64))
TREE = ExactModel(2, 2, torch.tensor([[0.1, 0.8, 0.3, 0.6]], dtype=torch.float64))


def slope(logits: Tensor) -> Tensor:
    return exact.policy_gradient(logits, TREE)


def moving(scale: float = 1.0) -> igt.Iterate:
    """Two parameter tables, apart by `scale`, and the true gradient at the older one."""
    before, change = numbers(0, 1, 3, 2), scale * numbers(1, 1, 3, 2)
    return igt.Iterate(before + change, before, slope(before))


def test_transport_leaves_no_bias_where_the_gradient_is_linear() -> None:
    """g(θ) = c − Mθ: from d_{t−1} = g(θ_{t−1}) both directions are exactly g(θ_t); plain momentum is not."""
    m, c, eta = numbers(2, 4, 4), numbers(3, 4), 0.1

    def linear(x: Tensor) -> Tensor:
        return c - m @ x

    before, now = numbers(4, 4), numbers(5, 4)
    state = igt.Iterate(now, before, linear(before))
    torch.testing.assert_close(igt.transported(state, eta), now + 9.0 * (now - before))  # (1 − η)/η = 9
    torch.testing.assert_close(igt.igt_direction(state, linear, eta), linear(now))
    found = igt.harpg_direction(state, linear, lambda x, v: -m @ v, eta, 0.3)
    torch.testing.assert_close(found, linear(now))
    momentum = (1 - eta) * state.direction + eta * linear(now)
    assert (momentum - linear(now)).abs().max() > 0.1


def test_bias_of_transport_is_of_second_order() -> None:
    """Half the step: plain momentum's error halves, the transported one's is a quarter."""
    eta, errors = 0.5, []
    for scale in (1e-2, 5e-3):
        state = moving(scale)
        plain = (1 - eta) * state.direction + eta * slope(state.parameters)
        kinds = (plain, igt.igt_direction(state, slope, eta))
        errors.append([(d - slope(state.parameters)).norm().item() for d in kinds])
    (plain, carried), (half_plain, half_carried) = errors
    assert plain / half_plain == pytest.approx(2.0, abs=0.05)
    assert carried / half_carried == pytest.approx(4.0, abs=0.1)


def test_the_hessian_correction_is_right_on_average() -> None:
    """∫_0^1 H(qθ + (1−q)θ')(θ − θ') dq = g(θ) − g(θ'), by Gauss-Legendre; so d_t is g(θ_t) on average over q."""
    state, eta, total = moving(), 0.2, torch.zeros(1, 3, 2, dtype=torch.float64)

    def product(x: Tensor, v: Tensor) -> Tensor:
        return igt.hessian_product(x, v, TREE)

    for node, weight in zip(*np.polynomial.legendre.leggauss(20), strict=True):
        total += weight / 2 * igt.harpg_direction(state, slope, product, eta, (1 + node) / 2)
    torch.testing.assert_close(total, slope(state.parameters), rtol=0, atol=1e-10)
    once = igt.harpg_direction(state, slope, product, eta, 0.5)
    assert (once - total).abs().max() > 1e-6  # a single q is not exact


def test_hessian_product_against_differences() -> None:
    logits, v, step = numbers(6, 1, 3, 2), numbers(7, 1, 3, 2), 1e-5
    want = (slope(logits + step * v) - slope(logits - step * v)) / (2 * step)
    torch.testing.assert_close(igt.hessian_product(logits, v, TREE), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["igt", "harpg"])
def test_normalized_steps_have_one_length_and_find_the_best_arm_from_single_samples(kind: str) -> None:
    """g and H·v from one sampled arm per step (REINFORCE); γ = 0.05, η = 0.1."""
    rng, reward = torch.Generator().manual_seed(0), BANDIT.success[0]

    def sampled(logits: Tensor) -> Tensor:
        probs = logits.softmax(-1)
        arm = int(torch.multinomial(probs[0, 0], 1, generator=rng))
        return reward[arm] * (torch.eye(3, dtype=torch.float64)[arm] - probs)

    zero = torch.zeros(1, 1, 3, dtype=torch.float64)
    state = igt.Iterate(zero, zero, zero)
    for _ in range(600):
        if kind == "igt":
            direction = igt.igt_direction(state, sampled, 0.1)
        else:
            q = float(torch.rand((), generator=rng))
            direction = igt.harpg_direction(state, sampled, lambda x, v: igt.hessian_product(x, v, BANDIT), 0.1, q)
        before, state = state, igt.step(state, direction, 0.05)
        assert (state.parameters - before.parameters).norm().item() == pytest.approx(0.05)
    assert state.parameters.softmax(-1)[0, 0, 2] > 0.8
    plain = igt.step(before, direction, 0.05, normalized=False)
    torch.testing.assert_close(plain.parameters, before.parameters + 0.05 * direction)


# Hybrid natural policy gradient ---------------------------------------------------------------------------------------


def test_hybrid_critic_by_hand() -> None:
    """Arm 0: 4 times 0.5 on-policy and 2 of weight ½ with 0.2: (4·.5 + .5·2·.2)/(4 + 1) = .44; arm 2 has no data."""
    counts, means = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.5, 0.0, 0.0])
    offline, offline_means = torch.tensor([2.0, 3.0, 0.0]), torch.tensor([0.2, 0.9, 0.0])
    found = hnpg.hybrid_critic(counts, means, offline, offline_means, 0.5)
    torch.testing.assert_close(found, torch.tensor([0.44, 0.9, 0.0]))
    f = found.clone().requires_grad_()  # and it is the minimum of the weighted squared errors
    error = (counts * (f - means) ** 2).sum() + 0.5 * (offline * (f - offline_means) ** 2).sum()
    assert torch.autograd.grad(error, f)[0].abs().max() < 1e-6


def test_npg_rises_at_every_step_and_keeps_its_bound() -> None:
    reward, rate, steps = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64), 0.3, 50
    log_policy = start = torch.tensor([0.6, 0.39, 0.01], dtype=torch.float64).log()
    values = [float(start.exp() @ reward)]
    for _ in range(steps):
        log_policy = hnpg.npg_step(log_policy, reward, rate)
        values.append(float(log_policy.exp() @ reward))
    assert all(b > a for a, b in pairwise(values))
    assert 0.9 - sum(values[1:]) / steps <= math.log(100) / (rate * steps)
    weights = np.array([0.6, 0.39, 0.01]) * np.exp(rate * steps * reward.numpy())
    np.testing.assert_allclose(log_policy.exp().numpy(), weights / weights.sum(), rtol=1e-10)


def test_offline_data_find_what_the_policy_never_tries() -> None:
    """100 answers a step: an arm below probability 1/100 is not taken. Its offline data alone bring it up."""
    reward = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    start = torch.tensor([0.5, 0.4999, 1e-4], dtype=torch.float64).log()
    final = []
    for share in (0.0, 1.0):
        log_policy = start
        for _ in range(100):
            counts = (100 * log_policy.exp()).floor()
            critic = hnpg.hybrid_critic(counts, reward, torch.full((3,), 5.0).double(), reward, share)
            log_policy = hnpg.npg_step(log_policy, critic, 0.5)
        final.append(float(log_policy.exp() @ reward))
    assert final[0] == pytest.approx(0.5, abs=1e-3)  # the best of the arms that it takes
    assert final[1] > 0.89
