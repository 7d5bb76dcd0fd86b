"""Trust-region methods of responses and groups, third part, against arithmetic that can be done by hand.

AGPO (dual feedback), GRPO-Guard, VESPO, LUSPO, FIPO, REAL and ADPO; the others are in test_library_region_c.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from batches import gradient, region_of, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.objectives.fipo import discounted
from etr.within import group_logsumexp, group_sum

RAGGED = [[0.05, -0.3, 0.5], [0.4], [-0.1, -0.6]]
ADVANTAGES = [1.0, -2.0, 0.5]


def rows(values: Tensor, batch: Batch) -> list[list[float]]:
    """Kept values, rows of their own length."""
    return [row[kept].tolist() for row, kept in zip(values, batch.response_mask, strict=True)]


def coefficients(objective: etr.Objective, batch: Batch) -> list[list[float]]:
    return rows(etr.gradient_coefficient(objective, batch), batch)


def prepared(objective: etr.Objective, batch: Batch) -> Batch:
    return objective.prepare(batch, objective.init_state((), batch.log_probs.device))[0]


def grouped(
    log_ratio: Sequence[Sequence[float]], rewards: Sequence[float], ids: Sequence[int], objective: etr.Objective
) -> Batch:
    """Responses with rewards and groups, and the objective's own advantages."""
    given, group = torch.tensor(rewards, dtype=torch.float64), torch.tensor(ids)
    advantages = objective.advantage(given, group)
    return tokens(log_ratio, advantages.tolist(), rewards=given, group_ids=group)


def approx(values: list[list[float]], rel: float = 1e-9) -> list[object]:
    return [pytest.approx(row, rel=rel, abs=1e-12) for row in values]


# AGPO (dual feedback) -------------------------------------------------------------------------------------------------


def feedback(
    fields: dict[str, float], log_ratio: list[list[float]], rewards: list[float], entropy: float
) -> list[float]:
    """Upper half-width of every response."""
    objective = etr.get("agpo_feedback", **fields)
    batch = grouped(log_ratio, rewards, [0] * len(rewards), objective)
    batch = prepared(objective, replace(batch, entropy=torch.full_like(batch.log_probs, entropy)))
    low, high = region_of(objective, batch)
    assert (high[:, 0] - 1).tolist() == pytest.approx((1 - low[:, 0]).tolist())
    return (high[:, 0] - 1).tolist()


def test_agpo_feedback_radius_by_hand() -> None:
    """One of four right: σ = √3/4, skew = (1 − ½)/σ = 1.155; ε = 0.2·(1 + 0.1·H)/(1 + σ + 0.5·KL + 0.3·|skew|)."""
    log_ratio, rewards = [[0.2, -0.1], [0.0, 0.0], [-0.4], [0.3, 0.3]], [1.0, 0.0, 0.0, 0.0]
    found = feedback({"skew": 0.3}, log_ratio, rewards, entropy=1.5)
    sigma = math.sqrt(3) / 4
    drift = [sum(math.exp(x) - 1 - x for x in row) / len(row) for row in log_ratio]
    want = [0.2 * (1 + 0.1 * 1.5) / (1 + sigma + 0.5 * kl + 0.3 * 0.5 / sigma) for kl in drift]
    assert found == pytest.approx(want, rel=1e-12)
    mirrored = feedback({"skew": 0.3}, log_ratio, [0.0, 1.0, 1.0, 1.0], entropy=1.5)  # skew −1.155
    assert mirrored == pytest.approx(want, rel=1e-12)


def test_agpo_feedback_moves_as_its_paper_says_and_stays_in_its_bounds() -> None:
    still, even = [[0.0]] * 4, [1.0, 1.0, 0.0, 0.0]
    plain = feedback({}, still, even, 0.0)[0]  # σ = ½, no skew, no drift: 0.2·(1 + 1e-9)/1.5
    assert plain == pytest.approx(0.2 / 1.5)
    assert feedback({}, still, [1.0, 0.0, 0.0, 0.0], 0.0)[0] > plain  # less spread
    assert feedback({}, still, [1.0] * 4, 0.0)[0] == pytest.approx(0.2)  # none
    assert feedback({}, still, even, 2.0)[0] == pytest.approx(0.2 * 1.2 / 1.5)  # more entropy
    assert feedback({}, [[0.5]] * 4, even, 0.0)[0] < plain  # drift
    assert feedback({}, still, even, 1000.0) == pytest.approx([0.4] * 4)
    assert feedback({"spread": 50.0}, still, even, 0.0) == pytest.approx([0.05] * 4)


def test_agpo_feedback_averages_entropy_over_the_tokens_of_a_group() -> None:
    """Group 0 has H = 1, 2, 3 on its three tokens, group 1 has 0: (1 + 0.1·2)/(1 + ½)·0.2 and 0.2/1.5."""
    objective = etr.get("agpo_feedback")
    batch = grouped([[0.0, 0.0], [0.0], [0.0], [0.0]], [1.0, 0.0, 1.0, 0.0], [0, 0, 1, 1], objective)
    entropy = torch.tensor([[1.0, 2.0], [3.0, math.nan], [0.0, math.nan], [0.0, math.nan]], dtype=torch.float64)
    high = region_of(objective, prepared(objective, replace(batch, entropy=entropy))).high[:, 0] - 1
    assert high.tolist() == pytest.approx([0.16] * 2 + [0.2 / 1.5] * 2)


# GRPO-Guard -----------------------------------------------------------------------------------------------------------


def vocabulary(size: int = 5) -> tuple[Batch, Tensor, Tensor]:
    """Every token of a small vocabulary as a response of its own, π some way off π_old."""
    rng = torch.Generator().manual_seed(1)
    old, new = (torch.randn(size, generator=rng).double().log_softmax(-1) for _ in range(2))
    rewards = torch.ones(size, 1, dtype=torch.float64) > 0
    batch = Batch(
        old[:, None], old[:, None], rewards, torch.ones(size).double(), full_log_probs=old.expand(size, 1, -1)
    )
    return batch, old, new


def test_grpo_guard_centres_the_log_ratio_under_the_old_policy() -> None:
    """E_old[log r] = −KL(π_old ‖ π) before and exactly 0 behind it."""
    batch, old, new = vocabulary()
    objective = etr.get("grpo_guard", kind="state")
    batch = replace(prepared(objective, batch), log_probs=new[:, None], full_log_probs=new.expand(5, 1, -1))
    kl = (old.exp() * (old - new)).sum().item()
    found = etr.policy_loss(objective, batch).log_ratio[:, 0]
    assert kl > 0.1 and (old.exp() * (new - old)).sum().item() == pytest.approx(-kl)
    assert (old.exp() * found).sum().item() == pytest.approx(0.0, abs=1e-12)
    assert found.tolist() == pytest.approx((new - old + kl).tolist())
    half = etr.policy_loss(etr.get("grpo_guard", kind="state", strength=0.5), batch).log_ratio[:, 0]
    assert half.tolist() == pytest.approx((new - old + kl / 2).tolist())
    ratio = (new - old + kl).exp()  # clipped and its gradient at the centred ratio: A = 1, 1.2 is the bound
    want = torch.where(ratio <= 1.2, ratio, 0.0)
    assert etr.gradient_coefficient(objective, batch)[:, 0].tolist() == pytest.approx(want.tolist())


def test_grpo_guard_of_responses_keeps_only_differences_within_them() -> None:
    """Response 0: 0.3, −0.1, 0.1 less their mean 0.1; a single token is always at 1, however far it moved."""
    batch = tokens([[0.3, -0.1, 0.1], [2.0]], [1.0, -1.0])
    objective = etr.get("grpo_guard")
    found = etr.policy_loss(objective, batch)
    assert rows(found.log_ratio, batch) == approx([[0.2, -0.2, 0.0], [0.0]])
    assert coefficients(objective, batch) == approx([[0.0, math.exp(-0.2), 1.0], [-1.0]])  # e^0.2 > 1.2


# VESPO ----------------------------------------------------------------------------------------------------------------


def phi(w: float, k: float, rate: float) -> float:
    return math.exp(rate + k * math.log(w) - rate * w)


def test_vespo_weighs_a_response_by_its_whole_ratio() -> None:
    """W = 2·¾ = 1.5 (right), 0.8·½ = 0.4 (wrong): φ = e^(3 + 2·ln 1.5 − 4.5) = 0.502, e^(2 + 3·ln 0.4 − 0.8) = 0.21."""
    batch = tokens([[math.log(2.0), math.log(0.75)], [math.log(0.8), math.log(0.5)]], [2.0, -1.0])
    found = coefficients(etr.get("vespo"), batch)
    assert found == approx([[2 * phi(1.5, 2, 3)] * 2, [-phi(0.4, 3, 2)] * 2])
    assert [row[0] for row in found] == pytest.approx([2 * 0.50204, -0.21249], rel=1e-4)
    _, slope = gradient(etr.get("vespo"), batch)
    assert rows(slope, batch) == approx([[-c / 4 for c in row] for row in found])  # four tokens
    other = etr.get("vespo", k_pos=1.0, lambda_pos=0.5)
    assert coefficients(other, batch)[0] == pytest.approx([2 * phi(1.5, 1, 0.5)] * 2)


@pytest.mark.parametrize(("advantage", "peak"), [(1.0, 2 / 3), (-1.0, 3 / 2)])
def test_vespo_weight_is_one_on_policy_peaks_at_k_over_lambda_and_vanishes(advantage: float, peak: float) -> None:
    grid = [0.01, *(peak * x for x in (0.8, 0.95, 1.0, 1.05, 1.2)), 1.0, 20.0]
    found = coefficients(etr.get("vespo"), tokens([[math.log(w)] for w in grid], [advantage] * len(grid)))
    weights = [row[0] / advantage for row in found]
    assert max(weights) == weights[3] and weights[6] == 1.0
    assert weights[0] < 2e-3 and weights[7] < 1e-9 and min(weights) > 0
    far = coefficients(etr.get("vespo"), tokens([[15.0] * 9, [-15.0] * 9], [advantage] * 2))
    assert all(0 < abs(c) < 1e-13 for row in far[1:] for c in row)  # W is kept above 1e-8
    assert not any(far[0])  # e^(−λ·e^20)


# LUSPO ----------------------------------------------------------------------------------------------------------------


def test_luspo_gives_every_token_the_same_pull() -> None:
    """J = (1/B) Σ_i T_i·s_i·A_i inside the region, and ∂J/∂log π = s_i·A_i/B: T_i times GSPO's."""
    fields = {"eps_low": 0.5, "eps_high": 0.5}
    batch = tokens(RAGGED, ADVANTAGES)
    loss, found = gradient(etr.get("luspo", **fields), batch)
    s = [math.exp(sum(row) / len(row)) for row in RAGGED]
    each = [len(row) * x * a / 3 for row, x, a in zip(RAGGED, s, ADVANTAGES, strict=True)]
    assert loss.item() == pytest.approx(-sum(each))
    want = [[-x * a / 3] * len(row) for row, x, a in zip(RAGGED, s, ADVANTAGES, strict=True)]
    assert rows(found, batch) == approx(want)
    _, shorter = gradient(etr.get("gspo", **fields), batch)
    length = batch.response_mask.sum(-1, keepdim=True)
    torch.testing.assert_close(found, shorter * length)


# FIPO -----------------------------------------------------------------------------------------------------------------


def test_fipo_discounts_the_future_like_a_loop() -> None:
    values = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for gamma in (0.5, 0.98, 1.0):
        want = torch.zeros_like(values)
        for t in range(11):
            want[..., t] = sum(gamma ** (s - t) * values[..., s] for s in range(t, 11))
        torch.testing.assert_close(discounted(values, gamma), want)
    assert torch.equal(discounted(values[..., :1], 0.5), values[..., :1])


def test_fipo_weights_by_hand() -> None:
    """γ = ½: F = 0.1 + ½·0.2 − ¼·0.4 = 0.1; 0.2 − ½·0.4 = 0; −0.4: weights e^0.1, 1, and 1 (or 0.8 with that bound)."""
    batch = tokens([[0.1, 0.2, -0.4]], [1.0])
    r = [math.exp(x) for x in (0.1, 0.2, -0.4)]
    assert coefficients(etr.get("fipo", half_life=1.0), batch)[0] == pytest.approx([math.exp(0.1) * r[0], r[1], r[2]])
    low = etr.get("fipo", half_life=1.0, weight_low=0.8)
    assert coefficients(low, batch)[0] == pytest.approx([math.exp(0.1) * r[0], r[1], 0.8 * r[2]])
    near = tokens([[0.05, 0.02]], [-1.0])
    _, found = gradient(etr.get("fipo", half_life=1.0), near)
    want = [math.exp(0.06 + 0.05) / 2, math.exp(0.02 + 0.02) / 2]  # −(−1)·weight·r/N, F = 0.05 + ½·0.02 = 0.06
    assert found[0].tolist() == pytest.approx(want)


def test_fipo_safety_and_the_tokens_that_do_not_count() -> None:
    """r = e^1.5 = 4.48 > 4 and A < 0: at most 1; r = e^2.4 = 11 > 10 is left out of the future of the first token."""
    batch, free = tokens([[1.5, 0.0]], [-1.0]), etr.get("fipo", safety=None)
    assert coefficients(etr.get("fipo"), batch)[0] == pytest.approx([-math.exp(1.5), -1.0])
    assert coefficients(free, batch)[0] == pytest.approx([-1.2 * math.exp(1.5), -1.0])
    far = tokens([[0.01, 2.4]], [1.0])
    assert coefficients(etr.get("fipo"), far)[0] == pytest.approx([math.exp(0.01 + 0.01), 0.0])
    counted = etr.get("fipo", dual_clip=None)
    assert coefficients(counted, far)[0] == pytest.approx([1.2 * math.exp(0.01), 0.0])


# REAL and ADPO: losses of a group -------------------------------------------------------------------------------------

GROUPS = [[0.2, -0.1], [0.3], [-0.4, 0.1, 0.1], [0.5], [-0.2], [0.1, 0.1]]  # two groups of three, one after the other
IDS = [0, 1, 0, 1, 0, 1]
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]  # group 0: two of three right; group 1: none


def test_group_sums_by_hand() -> None:
    values, ids = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0]]), torch.tensor([[9, 3, 9], [3, 3, 3]])
    assert group_sum(values, ids).tolist() == [[5.0, 2.0, 5.0], [7.0, 7.0, 7.0]]
    found = group_logsumexp(values, ids, torch.tensor([[True, False, True], [False, True, True]]))
    both = math.log(math.exp(1) + math.exp(4)), math.log(math.exp(2) + math.exp(4))
    assert found[0].tolist() == pytest.approx([both[0], -math.inf, both[0]])
    assert found[1].tolist() == pytest.approx([both[1]] * 3)


def by_autograd(batch: Batch, loss_of_group: object) -> tuple[float, Tensor]:
    """Mean over groups of a loss written with lists of rows, and its gradient with respect to log π."""
    leaf = torch.where(batch.response_mask, batch.log_probs, 0.0).requires_grad_()
    old = torch.where(batch.response_mask, batch.old_log_probs, 0.0)
    members = [[i for i, g in enumerate(IDS) if g == group] for group in (0, 1)]
    losses = [loss_of_group([(leaf - old)[i][batch.response_mask[i]].sum() for i in m], m) for m in members]  # type: ignore[operator]
    loss = sum(losses) / len(losses)
    return loss.item(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_real_is_the_loss_of_its_paper(tau: float) -> None:
    """Value and gradient against the two logarithms in plain code, groups interleaved and of several lengths."""
    objective = etr.get("real", tau=tau)
    batch = grouped(GROUPS, REWARDS, IDS, objective)

    def loss_of_group(sums: list[Tensor], members: list[int]) -> Tensor:
        s = [total / len(GROUPS[i]) for total, i in zip(sums, members, strict=True)]
        right = [torch.exp(-x / tau) for x, i in zip(s, members, strict=True) if REWARDS[i] == 1]
        wrong = [torch.exp(x / tau) for x, i in zip(s, members, strict=True) if REWARDS[i] == 0]
        return torch.log(1 + sum(right, torch.zeros(()))) + torch.log(1 + sum(wrong, torch.zeros(())))

    want, slope = by_autograd(batch, loss_of_group)
    loss, found = gradient(objective, batch)
    assert loss.item() == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(found, slope)


def test_real_advantages_and_bound() -> None:
    """A = ±(G/τ)/(1 + n of the own kind), G = 3, τ = ½: 6/3 right, 6/2 wrong, 6/4 in the group of three wrong ones."""
    objective = etr.get("real")
    given = torch.tensor(REWARDS, dtype=torch.float64)
    assert objective.advantage(given, torch.tensor(IDS)).tolist() == [2.0, -1.5, 2.0, -1.5, -3.0, -1.5]
    for move in (-5.0, 5.0):  # |c| ≤ G/τ = 6 however far the policy went, and falls where it went the right way
        far = grouped([[move]] * 6, REWARDS, IDS, objective)
        found = torch.tensor(coefficients(objective, far))[:, 0]
        assert (found.abs() <= 6.0).all()
        assert (found.abs() < 0.01)[given == (move > 0)].all() and (found.abs() > 1.0)[given != (move > 0)].all()


@pytest.mark.parametrize(("tau", "temperature"), [(0.8, 0.5), (2.0, 1.5)])
def test_adpo_is_the_cross_entropy_of_anchored_scores(tau: float, temperature: float) -> None:
    objective = etr.get("adpo", tau=tau, reward_temperature=temperature)
    batch = grouped(GROUPS, REWARDS, IDS, objective)

    def target(members: list[int]) -> list[float]:
        r = [REWARDS[i] for i in members]
        mean = sum(r) / 3
        std = math.sqrt(sum((x - mean) ** 2 for x in r) / 3)
        likes = [math.exp((x - mean) / std / temperature) if std > 0 else 1.0 for x in r]
        return [x / sum(likes) for x in likes]

    def loss_of_group(sums: list[Tensor], members: list[int]) -> Tensor:
        log_p = (torch.stack(sums) / tau).log_softmax(0)
        return -(torch.tensor(target(members), dtype=torch.float64) * log_p).sum()

    want, slope = by_autograd(batch, loss_of_group)
    loss, found = gradient(objective, batch)
    assert loss.item() == pytest.approx(want, rel=1e-9)
    torch.testing.assert_close(found, slope)
    advantages = [(3 * q - 1) / tau for q in target([0, 2, 4])]  # on-policy p = 1/3: c = G·(q − 1/3)/τ
    assert batch.advantages[[0, 2, 4]].tolist() == pytest.approx(advantages)


def test_adpo_stops_where_the_answers_are_as_likely_as_their_target() -> None:
    """u = log q up to a constant: p = q and no gradient is left; without signal that is the anchor itself."""
    objective = etr.get("adpo")
    z = [math.sqrt(2) / 2, -math.sqrt(2)]  # two of three right: (1/3)/(√2/3) and (−2/3)/(√2/3)
    moved = [[0.8 * z[0] / 0.5], [0.8 * z[0] / 0.5], [0.8 * z[1] / 0.5]]  # τ·log q = τ·z/temperature
    there = grouped(moved, [1.0, 1.0, 0.0], [0, 0, 0], objective)
    assert coefficients(objective, there) == approx([[0.0]] * 3)
    beyond = grouped([[x[0] * 2] for x in moved], [1.0, 1.0, 0.0], [0, 0, 0], objective)
    assert coefficients(objective, beyond)[2][0] > 0 > beyond.advantages[2]  # the wrong one is pulled back up
    still = grouped([[0.7], [0.7], [0.7]], [1.0, 1.0, 1.0], [0, 0, 0], objective)
    assert not still.advantages.any() and coefficients(objective, still) == approx([[0.0]] * 3)
