"""What the sampled gradient is on average: every outcome of a group enumerated, against the exact gradient of J."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from batches import PLAIN
from torch import Tensor

import etr
from etr import exact
from etr.advantages import Estimator, group_center, group_zscore, leave_one_out
from etr.batch import Batch
from etr.objective import Objective
from etr.toy.rollout import taken_log_probs
from toy_envs import ExactModel

BANDIT = ExactModel(3, 1, torch.tensor([[0.2, 0.5, 0.9]], dtype=torch.float64))
TREE = ExactModel(2, 2, torch.tensor([[0.1, 0.8, 0.3, 0.6]], dtype=torch.float64))
CASES = [(BANDIT, 2), (BANDIT, 3), (TREE, 2)]


def policy(model: ExactModel) -> Tensor:
    """A policy that is neither uniform nor symmetric, `[1, S, V]`."""
    count = model.states * model.vocab_size
    return torch.linspace(-0.7, 1.0, count, dtype=torch.float64).sin().reshape(1, model.states, model.vocab_size)


def outcomes(model: ExactModel, logits: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """All groups of `size` answers with all their rewards, as runs: sequences `[R, 1, G, T]`, rewards, P(outcome)."""
    answers = list(itertools.product(range(model.vocab_size), repeat=model.horizon))
    chance = exact.sequence_log_probs(logits, model)[0].exp()
    singles = [(y, r) for y in range(len(answers)) for r in (0.0, 1.0)]
    groups = list(itertools.product(singles, repeat=size))
    index = torch.tensor([[y for y, _ in group] for group in groups])
    rewards = torch.tensor([[r for _, r in group] for group in groups], dtype=torch.float64)
    success = model.success[0][index]
    probability = (chance[index] * torch.where(rewards > 0, success, 1 - success)).prod(-1)
    return torch.tensor(answers)[index].unsqueeze(1), rewards, probability


def expected_gradient(objective: Objective, estimator: Estimator, model: ExactModel, size: int) -> Tensor:
    """E[−∂loss/∂logits] of the first update, over all outcomes of one group."""
    logits = policy(model).requires_grad_()
    sequences, rewards, probability = outcomes(model, logits.detach(), size)  # outcomes are data, not differentiated
    assert probability.sum().item() == pytest.approx(1.0, rel=1e-12)
    index = model.prefix_states(sequences) * model.vocab_size + sequences
    current = taken_log_probs(logits.expand(len(rewards), *logits.shape), index)
    ids = torch.zeros(size, dtype=torch.long)
    batch = Batch(
        log_probs=current,
        old_log_probs=current.detach(),  # π_old is a constant
        response_mask=torch.ones_like(current, dtype=torch.bool),
        advantages=estimator(rewards, ids),
        group=etr.group_stats(rewards, ids),
    )
    expected = -(probability * etr.policy_loss(objective, batch).loss).sum()
    return torch.autograd.grad(expected, logits)[0]


@pytest.mark.parametrize(("model", "size"), CASES)
def test_leave_one_out_is_unbiased(model: ExactModel, size: int) -> None:
    found = expected_gradient(etr.get("reinforce", aggregation="seq-mean-token-sum"), leave_one_out, model, size)
    torch.testing.assert_close(found, exact.policy_gradient(policy(model), model))
    per_token = expected_gradient(etr.get("reinforce"), leave_one_out, model, size)  # token-mean divides by T
    torch.testing.assert_close(per_token * model.horizon, exact.policy_gradient(policy(model), model))


@pytest.mark.parametrize("name", PLAIN)
def test_every_objective_is_unbiased_at_its_first_update(name: str) -> None:
    """On-policy with T = 1 all of them are the plain policy gradient; only the advantage decides."""
    found = expected_gradient(etr.get(name), leave_one_out, BANDIT, 2)
    torch.testing.assert_close(found, exact.policy_gradient(policy(BANDIT), BANDIT))


@pytest.mark.parametrize(("model", "size"), CASES)
def test_a_mean_that_includes_the_response_shrinks_the_gradient(model: ExactModel, size: int) -> None:
    """The baseline depends on y_i, which costs the share 1/G."""
    found = expected_gradient(etr.get("dr_grpo", length=1), group_center, model, size)
    torch.testing.assert_close(found, (size - 1) / size * exact.policy_gradient(policy(model), model))


@pytest.mark.parametrize(("model", "size"), CASES)
def test_z_scores_keep_the_direction_within_a_prompt(model: ExactModel, size: int) -> None:
    """E = share/√(p(1−p)) · grad J: parallel, but prompts are weighted by difficulty."""
    grpo = etr.get("grpo", aggregation="seq-mean-token-sum")
    found = expected_gradient(grpo, group_zscore, model, size)
    want = exact.policy_gradient(policy(model), model)
    p = exact.expected_reward(policy(model), model).item()
    torch.testing.assert_close(found, limit_share(size, p) / math.sqrt(p * (1 - p)) * want)


def success_counts(size: int, p: float) -> list[tuple[float, Tensor]]:
    """P(k of `size` right) and the rewards of such a group, for every k."""
    weights = [math.comb(size, k) * p**k * (1 - p) ** (size - k) for k in range(size + 1)]
    return [(w, (torch.arange(size) < k).double()) for k, w in enumerate(weights)]


def limit_share(size: int, p: float) -> float:
    """E[mean_i A_i R_i] = E[√(p̂(1−p̂))], as a share of its limit √(p(1−p)) for G → ∞."""
    ids = torch.zeros(size, dtype=torch.long)
    expected = sum(w * (group_zscore(r, ids) * r).mean().item() for w, r in success_counts(size, p))
    return expected / math.sqrt(p * (1 - p))


@pytest.mark.parametrize(
    ("p", "shares"),
    [(0.5, {4: 0.808, 8: 0.928, 16: 0.967}), (0.05, {4: 0.373, 8: 0.539, 16: 0.712})],
)
def test_standard_deviation_scaling_falls_short_in_small_groups(p: float, shares: dict[int, float]) -> None:
    """Its expected gradient is below that of 2·arcsin√p, most for rare successes."""
    for size, share in shares.items():
        assert limit_share(size, p) == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize(
    ("p", "chances"),
    [(0.05, {4: 0.815, 8: 0.663, 16: 0.440}), (0.5, {4: 0.125, 8: 0.0078, 16: 3e-5})],
)
@pytest.mark.parametrize("estimator", [group_zscore, group_center, leave_one_out])
def test_chance_of_a_group_without_signal(p: float, chances: dict[int, float], estimator: Estimator) -> None:
    for size, published in chances.items():
        ids = torch.zeros(size, dtype=torch.long)
        dead = sum(w for w, r in success_counts(size, p) if bool((estimator(r, ids) == 0).all()))
        assert dead == pytest.approx(p**size + (1 - p) ** size, rel=1e-12)
        assert dead == pytest.approx(published, rel=0.02)
