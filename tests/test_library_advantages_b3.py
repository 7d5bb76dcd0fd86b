"""Advantage methods from DaGRPO to MaxRL: what their papers claim, gradients, training, and fields out of range."""

from __future__ import annotations

import pytest
import torch
from batches import gradient, tokens

import etr
from etr.errors import FieldError
from etr.laws import random_batch
from etr.oracles.population import gain
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

NAMES = (
    *("dagrpo", "disco", "maestro", "apo", "ares", "igpo", "empo", "implicit_prm", "eapo", "spo_minimax", "passk"),
    *("entropy_advantage", "maxrl"),
)


# What the papers claim ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 4, 9])
def test_maxrl_ascends_the_series_of_the_log_likelihood(size: int) -> None:
    """Expected gradient Σ_{k<G} (1−p)^{k−1} ∇p, the first G − 1 terms of ∇ ln p; power 0 has (G−1)/G·∇p."""
    for p in (0.05, 0.4, 0.9):
        series = sum((1 - p) ** (k - 1) for k in range(1, size))
        rate = torch.tensor(p, dtype=torch.float64)
        assert gain(etr.get("maxrl").advantage, rate, size).item() == pytest.approx(series)
        assert gain(etr.get("maxrl", power=0.0).advantage, rate, size).item() == pytest.approx((size - 1) / size)


def test_passk_weighs_hard_prompts_more_than_grpo_does() -> None:
    """Σ|A| of 8 answers: at 1 right pass@4's share against GRPO's is larger than at 4 right."""
    ids = torch.zeros(8, dtype=torch.long)
    shares = []
    for right in (1, 4):
        rewards = torch.tensor([1.0] * right + [0.0] * (8 - right), dtype=torch.float64)
        total = [
            etr.get(name, **f).advantage(rewards, ids).abs().sum() for name, f in (("passk", {"k": 4}), ("grpo", {}))
        ]
        shares.append(float(total[0] / total[1]))
    assert shares[0] > 2 * shares[1]


def test_spo_of_a_verdict_is_half_of_rloo() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    ids = torch.tensor([3, 3, 3, 3, 3, 8, 8, 8, 8, 8])
    found = etr.get("spo_minimax").advantage(rewards, ids)
    torch.testing.assert_close(found, etr.advantages.leave_one_out(rewards, ids) / 2)
    graded = torch.rand(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    win = etr.get("spo_minimax").advantage(graded, ids).unflatten(0, (2, 5))
    assert win.sum(-1).abs().max() < 1e-12  # the mean of a group is ½ exactly
    torch.testing.assert_close(win, etr.get("spo_minimax").advantage(graded.exp(), ids).view(2, 5))  # order alone


def test_spo_self_play_averages_to_the_minimax_winner() -> None:
    """Rock, paper, scissors with three judges, groups of 200: the mean policy of 300 steps is near (⅓, ⅓, ⅓)."""
    marks = torch.tensor([[2.0, 0.0, 1.0], [1.0, 2.0, 0.0], [0.0, 1.0, 2.0]], dtype=torch.float64)
    objective, rng = etr.get("spo_minimax", kind="components"), torch.Generator().manual_seed(0)
    logits, seen = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64), []
    for _ in range(300):
        policy = logits.softmax(-1)
        seen.append(policy)
        arms = torch.multinomial(policy, 200, replacement=True, generator=rng)
        batch = tokens([[0.0]] * 200, [0.0] * 200, components=marks[arms], group_ids=torch.zeros(200).long())
        advantages = objective.prepare(batch, {})[0].advantages
        logits = logits + 0.5 * torch.zeros(3).double().index_add(0, arms, advantages) / (200 * policy)  # natural
    mean = torch.stack(seen).mean(0)
    assert (mean - 1 / 3).abs().max() < 0.05
    assert (seen[0] - 1 / 3).abs().max() > 0.3


def test_entropy_advantage_keeps_signs_and_bounds() -> None:
    objective = etr.get("entropy_advantage", alpha=5.0, kappa=1.5)
    batch = random_batch(objective)
    before = batch.token_advantages.expand_as(batch.log_probs)[batch.response_mask]
    after = objective.prepare(batch, {})[0].advantages[batch.response_mask]
    assert torch.equal(before.sign(), after.sign())
    assert (after >= before).all() and (after - before <= before.abs() / 1.5 + 1e-12).all()


def test_igpo_returns_add_up_to_the_gain_and_the_outcome() -> None:
    """γ = 1: G on the first token is R + V at the last turn's start − V at the first token."""
    objective = etr.get("igpo")
    batch = random_batch(objective).clean()
    assert batch.values is not None and batch.turns is not None and batch.rewards is not None
    found = objective.returns(batch)  # type: ignore[attr-defined]
    for i, length in enumerate(batch.response_mask.sum(-1).tolist()):
        turns, values = batch.turns[i, :length].tolist(), batch.values[i].tolist()
        last = turns.index(turns[-1])
        assert found[i, 0].item() == pytest.approx(batch.rewards[i].item() + values[last] - values[0])


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradient_coefficients_inside_the_region(name: str) -> None:
    """c = r·A with the shaped A, in double precision, and the loss's gradient is −c/(B·T_i) without a penalty."""
    objective = etr.get(name, beta=0.0)
    batch = random_batch(objective, noise=0.02)
    state = objective.init_state((), torch.device("cpu"))
    ready, _ = objective.prepare(batch, state)
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    assert ((ratio - 1).abs() < 0.2).all()
    want = torch.where(batch.response_mask, ratio * ready.token_advantages, 0.0)
    torch.testing.assert_close(etr.gradient_coefficient(objective, ready), want, rtol=1e-12, atol=1e-14)
    lengths = batch.response_mask.sum(-1, keepdim=True)
    torch.testing.assert_close(gradient(objective, ready)[1], -want / (16 * lengths), rtol=1e-12, atol=1e-14)
    assert (want != 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize("name", NAMES)
def test_trains(name: str, env: str) -> None:
    history = train(load_recipe(name), make_model(env), ToyConfig(iterations=50, group_size=8, seeds=4))
    assert torch.isfinite(history.logits).all() and history.logits.abs().max() > 0
    reward = history.curves["reward"]
    if name != "empo":  # it follows the majority
        assert (reward[:, -1] > reward[:, 0]).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("disco", {"kind": "sqrt"}), ("disco", {"delta": 0.0}), ("maxrl", {"power": 2.0}), ("passk", {"k": 0}),
        ("passk", {"kind": "worst"}), ("spo_minimax", {"kind": "humans"}), ("entropy_advantage", {"kappa": 0.5}),
        ("empo", {"entropy_low": 0.9, "entropy_high": 0.1}), ("apo", {"stretch": -1.0}), ("dagrpo", {"delta": 1.5}),
        ("eapo", {"gamma": 0.0}), ("igpo", {"kind": "last"}), ("igpo", {"gamma": 1.5}),
        ("implicit_prm", {"share": -1.0}), ("maestro", {"actions": 0}), ("ares", {"window": 0}),
        ("ares", {"percentile": 1.5}),
    ],
)  # fmt: skip
def test_fields_out_of_range(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(FieldError):
        etr.get(name, **fields)
