"""Trust-region methods, first part: those that change advantages (BNPO, REINFORCE++, GPG) or the mean over tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from batches import OLD, gradient, rewards_of, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import InputError
from etr.objectives.bnpo_beta import fitted, log_density
from etr.objectives.reinforce_plus_plus import returns

# Advantages and aggregation -------------------------------------------------------------------------------------


def test_bnpo_beta_by_hand() -> None:
    """Success rates 1/4 and 3/4: M = ½, W = 2·(1/4)²/1 = 1/8. M(1−M)/W − 1 = 1, a = b = ½, α = β = 7/6.

    f = (p(1−p))^{1/6}/B(7/6, 7/6), the same for both groups; A = (R − p)/f.
    """
    rewards, ids = rewards_of(1, 3, size=4)
    beta = math.exp(2 * math.lgamma(7 / 6) - math.lgamma(7 / 3))
    f = (0.25 * 0.75) ** (1 / 6) / beta
    want = [0.75, *[-0.25] * 3, *[0.25] * 3, -0.75]
    found = etr.get("bnpo_beta").advantage(rewards, ids)
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64) / f)


def test_bnpo_beta_against_torchs_density_and_its_special_cases() -> None:
    p = torch.tensor([0.1, 0.3, 0.8], dtype=torch.float64)
    for a, b in ((1.0, 1.0), (1.5, 1.5), (2.5, 1.2)):
        alpha, beta = torch.tensor([a]).double(), torch.tensor([b]).double()
        want = torch.distributions.Beta(alpha, beta).log_prob(p)
        torch.testing.assert_close(log_density(p, alpha, beta), want)
    half = torch.tensor([1.5]).double()  # α = β = 3/2: f = 8/π·√(p(1−p)), GRPO's scale up to a constant
    torch.testing.assert_close(log_density(p, half, half).exp(), 8 / math.pi * (p * (1 - p)).sqrt())


def test_bnpo_beta_where_nothing_can_be_fitted() -> None:
    """One prompt, or equal success rates: plain centring. A group without signal: A = 0, also where f = 0."""
    objective = etr.get("bnpo_beta")
    for correct in ((1,), (1, 1)):
        rewards, ids = rewards_of(*correct, size=4)
        torch.testing.assert_close(objective.advantage(rewards, ids), etr.advantages.group_center(rewards, ids))
    rewards, ids = rewards_of(0, 1, 2, 4, size=4)
    found = objective.advantage(rewards, ids)
    assert found.isfinite().all() and (found[:4] == 0).all() and (found[-4:] == 0).all() and (found[4:12] != 0).all()
    uneven = torch.tensor([0, 0, 1, 1, 1], dtype=torch.long)  # groups of 2 and 3 count once each
    alpha, beta = fitted(torch.tensor([0.5, 0.5, 1 / 3, 1 / 3, 1 / 3]).double(), torch.tensor([2, 2, 3, 3, 3]).double())
    mean, variance = 5 / 12, 2 * (1 / 12) ** 2
    strength = mean * (1 - mean) / variance - 1
    assert alpha.item() == pytest.approx(1 + strength * mean / 3, rel=1e-6)
    assert beta.item() == pytest.approx(1 + strength * (1 - mean) / 3, rel=1e-6)
    with pytest.raises(InputError, match=r"outside \[0, 1\]"):
        objective.advantage(torch.tensor([2.0, 0.0, 1.0, 0.0, 1.0]), uneven)


def test_bnpo_averages_each_micro_batch_over_its_own_tokens() -> None:
    """A·r of rows: 1, 1, 1 | 2 with lengths 3 and 1. Whole: (3 + 2)/4. Parts: (3/3 + 2/1)/2, TRL's mean over parts."""
    batch, objective = tokens([[0.0, 0.0, 0.0], [0.0]], [1.0, 2.0]), etr.get("bnpo")
    assert etr.policy_loss(objective, batch).loss.item() == pytest.approx(-5 / 4)
    whole = objective.denominator(batch.response_mask)
    parts = [etr.policy_loss(objective, batch.rows(torch.tensor([i])), whole).loss.item() for i in range(2)]
    assert sum(parts) == pytest.approx(-3 / 2)
    assert etr.policy_loss(etr.get("dapo"), batch).loss.item() == pytest.approx(-5 / 4)  # the same on a whole batch
    empty = dataclasses.replace(batch, response_mask=torch.zeros_like(batch.response_mask))
    with pytest.raises(InputError, match="keeps no token"):
        etr.policy_loss(objective, empty)


def shaped(objective: etr.Objective, batch: Batch) -> Tensor:
    return objective.prepare(batch, {})[0].advantages


def outcome(rewards: list[float], lengths: list[int], **more: Any) -> Batch:
    """An on-policy batch of given lengths, whose own advantages must not matter."""
    batch = tokens([[0.0] * n for n in lengths], [9.0] * len(lengths))
    ids = torch.arange(len(rewards)) // 2
    return dataclasses.replace(batch, rewards=torch.tensor(rewards).double(), group_ids=ids, **more)


def test_reinforce_plus_plus_by_hand() -> None:
    """Rewards 1 and 0, lengths 1 and 3, no penalty: G = 1 | 0, 0, 0: mean ¼, std √(3/16)."""
    found = shaped(etr.get("reinforce_plus_plus"), outcome([1.0, 0.0], [1, 3]))
    scale = math.sqrt(3 / 16) + 1e-6
    want = torch.tensor([[0.75, 0.0, 0.0], [-0.25] * 3], dtype=torch.float64) / scale
    torch.testing.assert_close(found, want)


def test_reinforce_plus_plus_returns_and_penalty() -> None:
    """γ = ½, reward 1 on the last of three kept tokens, one hole: G = ¼, ½, (hole), 1. Penalty −β·k1 per token."""
    reward = torch.tensor([[0.0, 0.0, 5.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True]])
    assert returns(reward, mask, 0.5).tolist() == [[0.25, 0.5, 0.0, 1.0]]
    ref = torch.tensor([[OLD - 1.0, OLD - 1.0], [OLD, OLD]], dtype=torch.float64)
    found = shaped(etr.get("reinforce_plus_plus", beta=0.1), outcome([1.0, 0.0], [2, 2], ref_log_probs=ref))
    raw = torch.tensor([[1 - 0.2, 1 - 0.1], [0.0, 0.0]], dtype=torch.float64)  # to go: 2 and 1 penalties of 0.1
    torch.testing.assert_close(found, (raw - raw.mean()) / (raw.std(correction=0) + 1e-6))


def test_reinforce_plus_plus_is_whitened_and_needs_no_group() -> None:
    batch = outcome([1.0, 0.0, 1.0, 1.0], [3, 1, 2, 5])
    found, mask = shaped(etr.get("reinforce_plus_plus"), batch), batch.response_mask
    assert found[mask].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert found[mask].std(correction=0).item() == pytest.approx(1.0, rel=1e-5)
    assert (found[3, mask[3]] > 0).all()  # right beside another right one: the group would say 0
    single = etr.get("reinforce_plus_plus").advantage(torch.tensor([1.0, 0.0]).double(), torch.tensor([0, 1]))
    torch.testing.assert_close(single, torch.tensor([1.0, -1.0]).double(), rtol=1e-5, atol=0.0)
    equal = shaped(etr.get("reinforce_plus_plus"), outcome([1.0, 1.0], [3, 1]))
    assert (equal == 0).all()


def test_reinforce_plus_plus_gradient_is_that_of_its_advantages() -> None:
    """On-policy ∂loss/∂log π = −A_t/N: the shaped advantages, not the batch's own."""
    batch = outcome([1.0, 0.0], [1, 3])
    _, found = gradient(etr.get("reinforce_plus_plus"), batch)
    torch.testing.assert_close(found, -shaped(etr.get("reinforce_plus_plus"), batch) / 4)


def test_reinforce_plus_plus_baseline_levels_by_hand() -> None:
    """Groups (1, 0) and (1, 1), lengths 1, 3 | 2, 2. Centred: ½, −½, 0, 0.

    response: std √(1/8). token: values ½, −½·3, 0·4: mean −1/8, mean square 1/8, variance 7/64.
    """
    batch = outcome([1.0, 0.0, 1.0, 1.0], [1, 3, 2, 2])
    response = shaped(etr.get("reinforce_plus_plus_baseline", level="response"), batch)
    want = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=torch.float64) / (math.sqrt(1 / 8) + 1e-6)
    torch.testing.assert_close(response, want)
    token = shaped(etr.get("reinforce_plus_plus_baseline"), batch)
    first = torch.tensor([0.625, -0.375, 0.125, 0.125], dtype=torch.float64) / (math.sqrt(7 / 64) + 1e-6)
    torch.testing.assert_close(token[:, 0], first)
    assert (token[~batch.response_mask] == 0).all()
    even = outcome([1.0, 0.0, 1.0, 1.0], [2, 2, 2, 2])
    both = [shaped(etr.get("reinforce_plus_plus_baseline", level=level), even) for level in ("token", "response")]
    torch.testing.assert_close(both[0][:, 0], both[1])  # equal lengths: no difference


def test_gpg_makes_up_for_the_groups_without_signal() -> None:
    """Three groups of four, one of them all right: B/(B − M) = 12/8. Mean gradient as if that group were not there."""
    rewards, ids = rewards_of(1, 4, 2, size=4)
    found = etr.get("gpg").advantage(rewards, ids)
    want = 1.5 * torch.tensor([0.75, *[-0.25] * 3, *[0.0] * 4, 0.5, 0.5, -0.5, -0.5], dtype=torch.float64)
    torch.testing.assert_close(found, want)
    rest = torch.cat([rewards[:4], rewards[8:]])
    without = etr.get("gpg").advantage(rest, torch.arange(2).repeat_interleave(4))
    assert found.square().mean().sqrt().item() != 0
    torch.testing.assert_close(found.abs().mean(), without.abs().mean())
    scaled = etr.get("gpg", by_std=True).advantage(rewards, ids)
    torch.testing.assert_close(scaled[:4], 1.5 * torch.tensor([3.0, -1.0, -1.0, -1.0]).double() / math.sqrt(3))
    dead = etr.get("gpg").advantage(*rewards_of(4, 0, size=4))
    assert (dead == 0).all()
