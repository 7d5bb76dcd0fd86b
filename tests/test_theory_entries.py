"""Small theory entries of the oracles against plain Python, numpy and finite differences, on bandits."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from etr.errors import InputError
from etr.oracles import differential_information as did
from etr.oracles import inpo, policy_cliff, quantal_response, token_entropy

LOGITS = torch.tensor([2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
ROCK = torch.tensor([[0.5, 0.0, 1.0], [1.0, 0.5, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)  # i is beaten by i + 1


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def entropy_of(logits: np.ndarray) -> float:
    p = np.exp(logits - logits.max())
    p /= p.sum()
    return float(-(p * np.log(p)).sum())


# Entropy of an update by token ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("coefficient", [1.0, -2.5])
def test_entropy_change_of_each_token_against_differences(coefficient: float) -> None:
    """dz = η·c·(1_k − π) really made, for every k: the slope of the entropy at η = 0."""
    z, step = LOGITS.numpy(), 1e-6
    p = np.exp(z) / np.exp(z).sum()
    every = torch.arange(4)
    found = token_entropy.update_change(LOGITS.expand(4, 4), every, torch.full((4,), coefficient))
    for k in range(4):
        dz = coefficient * (np.eye(4)[k] - p)
        slope = (entropy_of(z + step * dz) - entropy_of(z - step * dz)) / (2 * step)
        assert found[k].item() == pytest.approx(slope, abs=1e-9)
    assert float((LOGITS.softmax(-1) * found).sum()) == pytest.approx(0.0, abs=1e-15)  # E_k[S_k − B] = 0


def test_quadrants() -> None:
    """π = (.757, .102, .102, .038), H = .801: the first token is likelier than e^{−H} = .449, the others are not."""
    log_probs = LOGITS.log_softmax(-1)
    entropy = torch.tensor(entropy_of(LOGITS.numpy()), dtype=torch.float64)
    for advantage in (1.0, -1.0):
        found = token_entropy.quadrant(log_probs, entropy, torch.tensor(advantage))
        assert found.tolist() == [-advantage, advantage, advantage, advantage]
        exactly = token_entropy.update_change(LOGITS.expand(4, 4), torch.arange(4), torch.full((4,), advantage))
        assert torch.equal(exactly.sign(), found)  # here the baseline B turns no sign


# Policy cliff ---------------------------------------------------------------------------------------------------------


def test_the_best_policy_jumps_at_a_tie_and_only_there() -> None:
    tie = torch.tensor([0.5, 0.5, 0.1], dtype=torch.float64)
    nudge = torch.tensor([1e-12, 0.0, 0.0], dtype=torch.float64)
    ends = [policy_cliff.optimal_policy(tie + sign * nudge) for sign in (-1, 1)]
    assert policy_cliff.total_variation(*ends).item() == 1.0  # from the second arm to the first
    assert policy_cliff.optimal_policy(tie).tolist() == [0.5, 0.5, 0.0]
    clear = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    assert policy_cliff.margin(clear).item() == pytest.approx(0.4)
    worst = torch.tensor([-0.199, 0.199, 0.199], dtype=torch.float64)  # half of the margin is 0.2
    assert torch.equal(policy_cliff.optimal_policy(clear + worst), policy_cliff.optimal_policy(clear))


@pytest.mark.parametrize("alpha", [0.05, 0.5, 5.0])
def test_the_soft_policy_is_lipschitz_with_a_constant_that_is_reached(alpha: float) -> None:
    rewards, change = numbers(0, 4000, 5), 0.1 * numbers(1, 4000, 5)
    moved = policy_cliff.total_variation(
        policy_cliff.soft_policy(rewards, alpha), policy_cliff.soft_policy(rewards + change, alpha)
    )
    assert (moved <= change.abs().amax(-1) / (2 * alpha) + 1e-15).all()
    # Two arms that tie: σ(2ε/α) − 1/2 = tanh(ε/α)/2, against the bound ε/(2α).
    eps = 1e-4 * alpha
    pair = torch.tensor([0.3, 0.3], dtype=torch.float64)
    dr = torch.tensor([eps, -eps], dtype=torch.float64)
    found = policy_cliff.total_variation(
        policy_cliff.soft_policy(pair, alpha), policy_cliff.soft_policy(pair + dr, alpha)
    ).item()
    assert found == pytest.approx(math.tanh(eps / alpha) / 2, rel=1e-9)
    assert found / policy_cliff.lipschitz_bound(dr, alpha).item() == pytest.approx(1.0, abs=1e-7)


def test_lipschitz_in_a_decision_process() -> None:
    """TV ≤ ‖dR‖∞/(2α(1−γ)) in every state; with γ = 0 the process is its bandits."""
    alpha, gamma = 0.5, 0.8
    for seed in range(8):
        rewards, change = numbers(seed, 4, 3), 0.2 * numbers(seed + 100, 4, 3)
        moves = (2 * numbers(seed + 200, 4, 3, 4)).softmax(-1)
        soft = [policy_cliff.soft_policy_process(r, moves, alpha, gamma, 150) for r in (rewards, rewards + change)]
        bound = change.abs().max() / (2 * alpha * (1 - gamma))
        assert policy_cliff.total_variation(*soft).max() <= bound
        assert policy_cliff.lipschitz_bound(change, alpha, gamma).max() == pytest.approx(bound.item())
        short = policy_cliff.soft_policy_process(rewards, moves, alpha, 0.0, 1)
        torch.testing.assert_close(short, torch.softmax(rewards / alpha, -1))


def test_effective_reward() -> None:
    """Weights (0.25, 0.75): 0.25·(1, 0) + 0.75·(0, 1) = (0.25, 0.75); moving them over 1/2 moves the best arm."""
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    weights = torch.tensor([[0.25, 0.75], [0.75, 0.25]])
    found = policy_cliff.effective_reward(rewards, weights)
    assert found.tolist() == [[0.25, 0.75], [0.75, 0.25]]
    assert policy_cliff.optimal_policy(found).tolist() == [[0.0, 1.0], [1.0, 0.0]]


# Differential information ---------------------------------------------------------------------------------------------


def fitted(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The minimiser over softmax policies."""
    logits = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits.log_softmax(-1))
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    return logits.detach().softmax(-1)


def test_dpo_finds_the_target_where_preferences_encode_differential_information() -> None:
    log_ref, log_best, beta = numbers(0, 5).log_softmax(-1), numbers(1, 5).log_softmax(-1), 0.3
    q = did.log_did(log_best, log_ref)
    want = np.exp(log_best.numpy()) / np.exp(log_ref.numpy())
    np.testing.assert_allclose(q.exp().numpy(), want / want.sum(), rtol=1e-12)  # q ∝ π*/π_ref
    prefers = did.preferences(q, beta)
    i, j = 0, 3
    odds = (want[i] / want[j]) ** beta  # Bradley-Terry on q^β: odds of i against j
    assert prefers[i, j].item() == pytest.approx(odds / (1 + odds))
    found = fitted(lambda log_policy: did.dpo_loss(log_policy, log_ref, prefers, beta), torch.zeros(5).double())
    torch.testing.assert_close(found, log_best.exp(), rtol=1e-5, atol=1e-7)
    # A reward without the reference finds the differential information itself, not the target.
    plain = fitted(lambda log_policy: did.pairwise_loss(beta * log_policy, prefers), torch.zeros(5).double())
    torch.testing.assert_close(plain, q.exp(), rtol=1e-5, atol=1e-7)
    assert (plain - log_best.exp()).abs().max() > 0.05


def test_dpo_misses_the_target_for_other_preferences() -> None:
    """Preferences by ln π* (not by ln π*/π_ref) make DPO multiply π_ref in once more: π ∝ π_ref·π*."""
    log_ref, log_best, beta = numbers(0, 5).log_softmax(-1), numbers(1, 5).log_softmax(-1), 0.3
    prefers = did.preferences(log_best, beta)
    found = fitted(lambda log_policy: did.dpo_loss(log_policy, log_ref, prefers, beta), torch.zeros(5).double())
    torch.testing.assert_close(found, (log_ref + log_best).softmax(-1), rtol=1e-5, atol=1e-7)


def test_expected_dpo_loss_by_hand() -> None:
    """Two answers, π/π_ref = (1.2, 0.8): u = β·ln 1.5; mean over both ordered pairs, P(1 ≻ 2) = 0.7."""
    log_ref, log_policy = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.6, 0.4]).log()
    u = 2.0 * math.log(1.5)
    sigmoid = 1 / (1 + math.exp(-u))
    want = -(0.7 * math.log(sigmoid) + 0.3 * math.log(1 - sigmoid)) / 2
    prefers = torch.tensor([[0.5, 0.7], [0.3, 0.5]])
    assert did.dpo_loss(log_policy, log_ref, prefers, 2.0).item() == pytest.approx(want, rel=1e-6)


# Preference games -----------------------------------------------------------------------------------------------------


def test_the_mirror_step_by_hand_and_as_the_minimiser_of_both_losses() -> None:
    p, ref, eta, tau = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.2, 0.2]), 0.8, 0.2
    wins = ROCK.numpy() @ p
    weight = p ** (1 - tau / eta) * ref ** (tau / eta) * np.exp(wins / eta)
    log_p, log_ref = torch.tensor(p).log(), torch.tensor(ref).log()
    after = inpo.mirror_step(log_p, log_ref, ROCK, eta, tau)
    np.testing.assert_allclose(after.exp().numpy(), weight / weight.sum(), rtol=1e-12)
    assert inpo.loss(after, log_p, log_ref, ROCK, eta, tau).item() == pytest.approx(0.0, abs=1e-25)
    found = fitted(lambda x: inpo.pair_loss(x, log_p, log_ref, ROCK, eta, tau), torch.zeros(3).double())
    torch.testing.assert_close(found, after.exp(), rtol=1e-6, atol=1e-8)


def test_the_losses_differ_by_a_constant() -> None:
    log_p, log_ref = numbers(0, 4).log_softmax(-1), numbers(1, 4).log_softmax(-1)
    prefers = numbers(2, 4, 4).sigmoid()
    prefers = (prefers + 1 - prefers.T) / 2
    gaps = [
        inpo.pair_loss(x, log_p, log_ref, prefers, 0.7, 0.3) - inpo.loss(x, log_p, log_ref, prefers, 0.7, 0.3)
        for x in numbers(3, 6, 4).log_softmax(-1)
    ]
    assert max(gaps) - min(gaps) == pytest.approx(0.0, abs=1e-12)
    assert float(gaps[0]) > 0.1  # the winner of a pair is drawn: what cannot be predicted stays


def test_self_play_has_no_regret() -> None:
    """In rock-paper-scissors the mean policy comes near (1/3, 1/3, 1/3); no single policy does."""
    log_policy = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log()
    start, seen, rounds, eta = log_policy, [], 4000, 10.0
    for _ in range(rounds):
        seen.append(log_policy.exp())
        log_policy = inpo.mirror_step(log_policy, start, ROCK, eta)
    mean = torch.stack(seen).mean(0)
    regret = math.log(10) * eta / rounds + 1 / (8 * eta)  # Hedge: ln(1/π_1(y)) η/T + 1/(8η), and mean P(π_t ≻ π_t) = ½
    assert inpo.exploitability(mean, ROCK).item() <= regret
    assert inpo.exploitability(mean, ROCK).item() < 0.02
    assert inpo.exploitability(log_policy.exp(), ROCK).item() > 0.1
    for _ in range(3000):  # with τ the last policy itself settles
        log_policy = inpo.mirror_step(log_policy, start, ROCK, eta, tau=0.5)
    after = inpo.mirror_step(log_policy, start, ROCK, eta, tau=0.5)
    torch.testing.assert_close(after, log_policy, rtol=0, atol=1e-9)


def test_quantal_responses_answer_each_other_and_cool_down_to_nash() -> None:
    """Pennies with payoffs (2, −1; −1, 1): Nash is x = y = (2/5, 3/5), where both rows earn the same, 1/5."""
    payoff = torch.tensor([[2.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    gaps = []
    for tau, iterations in ((10.0, 100), (1.0, 1000), (0.1, 20_000)):
        x, y = (v.numpy() for v in quantal_response.quantal_response(payoff, tau, iterations=iterations))
        for mine, scores in ((x, payoff.numpy() @ y / tau), (y, -payoff.numpy().T @ x / tau)):
            np.testing.assert_allclose(mine, np.exp(scores) / np.exp(scores).sum(), atol=1e-9)
        gaps.append(quantal_response.nash_gap(payoff, torch.tensor(x), torch.tensor(y)).item())
    assert gaps == sorted(gaps, reverse=True)
    np.testing.assert_allclose(x, [0.4, 0.6], atol=0.02)
    np.testing.assert_allclose(y, [0.4, 0.6], atol=0.02)
    nash = torch.tensor([0.4, 0.6], dtype=torch.float64)
    assert quantal_response.nash_gap(payoff, nash, nash).item() == pytest.approx(0.0, abs=1e-12)


def test_quantal_responses_are_found_or_refused() -> None:
    """However low the temperature, what comes back answers itself; too few steps are said to be too few."""
    payoff = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 1.0, 0.0]], dtype=torch.float64)
    for tau, column in ((0.05, None), (0.05, 0.5), (100.0, None)):
        x, y = quantal_response.quantal_response(payoff, tau, column)
        torch.testing.assert_close(x, (payoff @ y / tau).softmax(-1), rtol=1e-9, atol=0)
        torch.testing.assert_close(y, (-payoff.T @ x / (column or tau)).softmax(-1), rtol=1e-9, atol=0)
    with pytest.raises(
        InputError, match=r"^after 50 steps the answers are still .* off \(in logits\); raise iterations"
    ):
        quantal_response.quantal_response(payoff, 0.05, iterations=50)
    with pytest.raises(InputError, match="the temperature is 0; give one above 0"):
        quantal_response.quantal_response(payoff, 1.0, 0.0)
