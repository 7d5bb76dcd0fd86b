"""Objectives that have a say in the sampling: what they ask for, and their loss, against arithmetic done by hand."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from batches import OLD, gradient, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import FieldError
from etr.objective import Objective
from etr.objectives.arpo import ARPO, mean_of_shared
from etr.objectives.d3s import spread
from etr.samplers import Attempt, Sampler, Start

F = torch.float64


def attempt(rewards: list[list[float]], horizon: int, round_: int = 0, **more: Any) -> Attempt:
    """Answers of one run with these rewards `[P, G]`: token t of answer g to prompt p is 100p + 10g + t."""
    paid = torch.tensor([rewards], dtype=F)
    p, g = torch.meshgrid(torch.arange(paid.shape[1]), torch.arange(paid.shape[2]), indexing="ij")
    shown = (100 * p + 10 * g).unsqueeze(-1) + torch.arange(horizon)
    hints = 1000 + torch.arange(horizon).expand(paid.shape[1], horizon)
    given = more.pop("given", torch.zeros(paid.shape, dtype=torch.int64))
    return Attempt(round_, shown.unsqueeze(0), paid, given, hints, more.get("entropy"), more.get("state", {}))


def start(name: str, at: Attempt, **fields: object) -> Start | None:
    return cast(Sampler, etr.get(name, **fields)).start(at)


def with_rewards(rows: list[list[float]], rewards: list[float], ids: list[int], **more: Any) -> Batch:
    """Hand-made tokens with rewards, z-scores of their groups, and tokens, entropies and rollout log-probs if given."""
    paid, of = torch.tensor(rewards, dtype=F), torch.tensor(ids)
    batch = tokens(rows, etr.advantages.group_zscore(paid, of).tolist(), rewards=paid, group_ids=of)
    return dataclasses.replace(batch, group=etr.group_stats(paid, of), **more)


def prepared(objective: Objective, batch: Batch, state: dict[str, Tensor] | None = None) -> Batch:
    state = objective.init_state((), torch.device("cpu")) if state is None else state
    return objective.prepare(batch, state)[0]


# Dynamic sampling -----------------------------------------------------------------------------------------------------


def test_dynamic_sampling_draws_groups_without_signal_again() -> None:
    found = start("dynamic_sampling", attempt([[1, 1, 1], [0, 1, 0], [0, 0, 0]], 2))
    assert found is not None and found.anew is not None
    assert found.anew[0].tolist() == [[True] * 3, [False] * 3, [True] * 3] and not found.given.any()
    assert start("dynamic_sampling", attempt([[1, 0, 1], [0, 1, 0]], 2)) is None
    assert start("dynamic_sampling", attempt([[1, 1]], 2, round_=9)) is None  # ten rounds in all
    with pytest.raises(FieldError, match=r"refills is 16; give a number from 0 to 15"):
        etr.get("dynamic_sampling", refills=16)


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_dynamic_sampling_is_dapo_on_the_groups_with_signal(aggregation: str) -> None:
    rows, ids = [[0.1, 0.4], [-0.2], [0.1, 0.1, 0.1], [0.3]], [0, 0, 1, 1]
    whole = with_rewards(rows, [1.0, 0.0, 1.0, 1.0], ids)
    alone = with_rewards(rows[:2], [1.0, 0.0], [0, 0])
    found = gradient(etr.get("dynamic_sampling", aggregation=aggregation), whole)
    want = gradient(etr.get("dapo", aggregation=aggregation), alone)
    torch.testing.assert_close(found[0], want[0])
    torch.testing.assert_close(found[1][:2, :2], want[1])
    assert not found[1][2:].any()
    kept = gradient(etr.get("dynamic_sampling", aggregation="token-mean", drop=False), whole)[0]
    # min(r·1, 1.28): 1.10517, 1.28; max(0.81873, 0.8)·(−1): sum 1.56644 over 7 tokens
    assert kept.item() == pytest.approx(-(math.exp(0.1) + 1.28 - math.exp(-0.2)) / 7)


# D³S ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 7])
def test_spread_finds_the_largest_variance_of_all_subsets(size: int) -> None:
    rng = np.random.default_rng(size)
    for count in range(1, size + 1):
        values = rng.normal(size=size) + rng.normal()
        kept = spread(torch.tensor(values), torch.zeros(size, dtype=F), torch.tensor([count]))
        assert int(kept.sum()) == count
        best = max(np.var([values[i] for i in chosen]) for chosen in itertools.combinations(range(size), count))
        assert np.var(values[kept.numpy()]) == pytest.approx(best, abs=1e-12)


def test_spread_prefers_uncertain_answers_among_equals() -> None:
    values, ties = torch.tensor([-1.0, 1.0, -1.0, 1.0, 1.0]), torch.tensor([0.1, 0.2, 0.3, 0.9, 0.5])
    kept = spread(values, ties, torch.tensor([2]))
    assert kept.tolist() == [False, False, True, True, False]  # one of each sign, the one with the larger entropy
    runs = spread(torch.stack([values, -values]), torch.stack([ties, ties]), torch.tensor([[2], [4]]))
    assert runs[0].tolist() == kept.tolist() and int(runs[1].sum()) == 4


def test_d3s_by_hand() -> None:
    """A = ±1 and 0: half of 4 answers are 0 and 1; 40 % of their 3 tokens is 2 (up), the two of the largest |A|·H."""
    batch = tokens([[0.0, 0.0], [0.0], [0.0, 0.0], [0.0]], [1.0, -1.0, 0.0, 0.0])
    nan = math.nan
    batch = dataclasses.replace(batch, entropy=torch.tensor([[0.2, 0.7], [0.5, nan], [9.0, 9.0], [9.0, nan]], dtype=F))
    objective = etr.get("d3s")
    c = etr.gradient_coefficient(objective, batch)
    assert c.tolist() == [[0.0, 3.0], [-3.0, 0.0], [0.0, 0.0], [0.0, 0.0]]  # 6 tokens for 2: a mean over the kept ones
    assert gradient(objective, batch)[1].tolist() == [[0.0, -0.5], [0.5, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_d3s_relaxes_linearly() -> None:
    objective = etr.get("d3s", rows_first=0.2, rows_last=0.6, tokens_first=1.0, tokens_last=0.5, steps=4)
    batch = dataclasses.replace(tokens([[0.0], [0.0]], [1.0, -1.0]), entropy=torch.ones(2, 1, dtype=F))
    state, seen = objective.init_state((), torch.device("cpu")), []
    for _ in range(6):
        done, state = objective.prepare(batch, state)
        seen.append((done.columns["rows_share"][0, 0].item(), done.columns["tokens_share"][0, 0].item()))
    want = [(0.2, 1.0), (0.3, 0.875), (0.4, 0.75), (0.5, 0.625), (0.6, 0.5), (0.6, 0.5)]
    assert np.array(seen) == pytest.approx(np.array(want))


# Hints ----------------------------------------------------------------------------------------------------------------


def test_ghpo_gives_a_quarter_more_each_round() -> None:
    for round_, length in ((0, 2), (1, 4), (2, 6)):
        found = start("ghpo", attempt([[0, 0], [0, 1]], 8, round_))
        assert found is not None and found.given[0].tolist() == [[length, length], [0, 0]] and not found.trained
        assert found.tokens.expand(1, 2, 2, 8)[0, 0, 0].tolist() == list(range(1000, 1008))
    assert start("ghpo", attempt([[0, 0]], 8, 3)) is None and start("ghpo", attempt([[0, 1]], 8)) is None
    last = start("ghpo", attempt([[0, 0]], 2, 2))
    assert last is not None and last.given[0].tolist() == [[1, 1]]  # one token is left to choose


def test_pope_guides_half_of_a_hard_group_and_stops_at_the_shortest_help() -> None:
    found = start("pope", attempt([[0, 0, 0, 0], [0, 0, 0, 1]], 4))
    assert found is not None and found.given[0].tolist() == [[0, 0, 1, 1], [0, 0, 0, 0]]
    given = torch.tensor([[[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]]])
    again = start("pope", attempt([[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]], 4, 1, given=given))
    assert again is not None and again.given[0].tolist() == [[0, 0, 2, 2], [0] * 4, [0] * 4]  # only guided ones count
    assert start("pope", attempt([[0, 0, 0, 0]], 4, 3, given=given[:, :1])) is None  # nothing longer leaves a token


def test_pope_gives_both_versions_of_a_prompt_their_own_baseline() -> None:
    batch = with_rewards([[0.0]] * 8, [0, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1])
    batch = batch.with_columns(given=torch.tensor([0, 0, 1, 1, 1, 0, 0, 0]))
    c = etr.gradient_coefficient(etr.get("pope"), batch)[:, 0].tolist()
    # guided 1, 1, 0: mean 2/3, std √2/3, so 1/√2 and −√2; plain 0, 0: nothing; the other group as it was: √2, −1/√2
    half, two = 1 / math.sqrt(2), math.sqrt(2)
    assert c == pytest.approx([0, 0, half, half, -two, two, -half, -half])


# Demonstrations -------------------------------------------------------------------------------------------------------


def helped_batch(given: list[int], rollout: float) -> Batch:
    """Two answers of three and two tokens, A = 1 and −1, of which some first tokens were given at that log-prob."""
    batch = with_rewards([[0.1, 0.5, -0.3], [0.2, -0.1]], [1.0, 0.0], [0, 0])
    return dataclasses.replace(
        batch, columns={"given": torch.tensor(given)}, rollout_log_probs=torch.full_like(batch.log_probs, rollout)
    )


@pytest.mark.parametrize("name", ["expert_anchor", "icpo"])
def test_given_answers_weigh_by_the_shaped_ratio(name: str) -> None:
    """c = A·λx/(x + λ)², x = π/μ: the derivative of A·x/(x + λ) by log π, on every token of a helped answer."""
    objective = etr.get(name, damping=0.2, **({"bonus": 0.0} if name == "icpo" else {}))
    for rollout in (0.0, -1.9):
        batch = helped_batch([2, 0], rollout)
        c = etr.gradient_coefficient(objective, batch)
        ratios = [math.exp(OLD + shift - rollout) for shift in (0.1, 0.5, -0.3)]
        assert c[0].tolist() == pytest.approx([0.2 * x / (x + 0.2) ** 2 for x in ratios], rel=1e-12)
        assert c[1].tolist() == pytest.approx([-math.exp(0.2), -math.exp(-0.1), 0])
        leaf = batch.log_probs.clone()
        leaf[0, 1] += 1e-6
        up = etr.policy_loss(objective, dataclasses.replace(batch, log_probs=leaf)).loss
        slope = (up - etr.policy_loss(objective, batch).loss).item() / 1e-6
        assert slope == pytest.approx(-c[0, 1].item() / (2 * 3), rel=1e-4)  # two answers, three tokens


def test_expert_anchors_take_the_last_places_of_groups_that_fail() -> None:
    found = start("expert_anchor", attempt([[0, 0, 0], [0, 1, 0]], 3), experts=2)
    assert found is not None and found.trained and found.given[0].tolist() == [[0, 3, 3], [0, 0, 0]]
    assert found.log_probs is not None and not found.log_probs.any()  # log 1: who made it is not known
    assert start("expert_anchor", attempt([[0, 0, 0]], 3, 1)) is None


def test_icpo_accepts_right_answers_alone() -> None:
    first = start("icpo", attempt([[0, 0], [1, 1]], 4))
    assert first is not None and first.trained and first.given[0].tolist() == [[0, 2], [0, 2]]  # half of four tokens
    given = torch.tensor([[[0, 2], [0, 2]]])
    second = start("icpo", attempt([[1, 0], [0, 1]], 4, 1, given=given))
    assert second is not None and second.anew is not None and second.anew[0].tolist() == [[False, True], [False] * 2]
    assert not second.given.any() and start("icpo", attempt([[0, 1]], 4, 1, given=given[:, :1])) is None


def test_icpo_pools_the_group_with_a_bonus_that_decays() -> None:
    objective = etr.get("icpo", bonus=0.5, bonus_steps=4)
    batch = with_rewards([[0.0]] * 3, [0.0, 1.0, 1.0], [0, 0, 0], rollout_log_probs=torch.zeros(3, 1, dtype=F))
    batch = batch.with_columns(given=torch.tensor([0, 0, 1]))
    state = objective.init_state((), torch.device("cpu"))
    for step in range(6):
        done, state = objective.prepare(batch, state)
        rewards = np.array([0.0, 1.0, 1.0 + 0.5 * max(0, 1 - step / 4)])
        want = (rewards - rewards.mean()) / rewards.std()
        assert done.advantages[:, 0].numpy() == pytest.approx(want, rel=1e-6)


def test_hpt_imitates_at_the_gate_and_reinforces_above_it() -> None:
    at = attempt([[0, 0, 0], [0, 1, 0], [1, 1, 0]], 2)
    found = start("hpt", at, gate=1)
    assert found is not None and found.trained and found.given[0].tolist() == [[2] * 3, [2] * 3, [0] * 3]
    soft = start("hpt", at, soft=True)
    assert soft is not None and soft.given[0].tolist() == [[0, 0, 2], [0] * 3, [0] * 3]
    batch = with_rewards([[0.9], [0.9], [0.9], [0.9]], [1.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    batch = dataclasses.replace(batch, advantages=torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=F))
    batch = batch.with_columns(given=torch.tensor([0, 0, 1, 1]))
    c = etr.gradient_coefficient(etr.get("hpt", sft=0.3, entropy_bonus=0.0), batch)[:, 0]
    r = math.exp(0.9)  # far above 1.2, and not clipped
    assert c.tolist() == pytest.approx([0.5 * r, -0.5 * r, 0.3, 0.3])


def test_hpt_entropy_bonus() -> None:
    batch = dataclasses.replace(tokens([[0.0], [0.0]], [0.0, 0.0]), entropy=torch.tensor([[0.5], [1.5]], dtype=F))
    assert etr.policy_loss(etr.get("hpt", entropy_bonus=0.1), batch).loss.item() == pytest.approx(-0.1)


# ARPO -----------------------------------------------------------------------------------------------------------------


def test_arpo_branches_where_entropy_rose_most() -> None:
    entropy = torch.tensor([[[[1.0, 1.2, 0.5], [1.0, 0.8, 0.9], [9.0] * 3, [9.0] * 3]]])
    found = start("arpo", attempt([[0, 0, 0, 0]], 3, entropy=entropy))
    assert found is not None and found.trained
    # trunk 0 rises by 0.2 before token 1; trunk 1 never rises: ½ + 0.2·0.1 > ½, so its answer stays a fresh one
    assert found.given[0].tolist() == [[0, 0, 1, 0]]
    assert found.tokens[0, 0, :, 0].tolist() == [0, 10, 0, 10]
    low = start("arpo", attempt([[0, 0, 0, 0]], 3, entropy=entropy), threshold=0.53)
    assert low is not None and low.given[0].tolist() == [[0, 0, 1, 2]]  # ½ + 0.2·0.1 = 0.52, before token 2


def test_shared_tokens_have_the_mean_advantage_and_the_same_gradient() -> None:
    """Answers ab, ac, bc with A = 3, −1, 5; a fourth, of another group, also begins with a."""
    batch = tokens([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0]], [3.0, -1.0, 5.0, 7.0])
    shown = torch.tensor([[0, 1], [0, 2], [1, 2], [0, 0]])
    batch = dataclasses.replace(batch, tokens=shown, group_ids=torch.tensor([0, 0, 0, 1]))
    clean = batch.clean()
    found = mean_of_shared(clean.token_advantages.expand(4, 2), clean)
    assert found.tolist() == [[1.0, 3.0], [1.0, -1.0], [5.0, 5.0], [7.0, 0.0]]
    need = dataclasses.replace(batch, entropy=torch.ones(4, 2, dtype=F))
    hard, soft = (gradient(ARPO(shared=shared), need)[1] for shared in (True, False))
    assert hard[:2, 0].sum().item() == pytest.approx(soft[:2, 0].sum().item()) and not torch.equal(hard, soft)


def test_aepo_splits_the_budget_by_entropy() -> None:
    entropy = torch.tensor([[[[2.0, 1.0, 1.0]] * 8, [[0.5, 1.0, 2.0]] * 8]])
    found = start("aepo_rollout", attempt([[0] * 8] * 2, 3, entropy=entropy))
    assert found is not None
    # prompt 0: 8·σ(2 − 1) = 5.85 -> 6 whole; P = 0.5 − 0.2 below 0.4: no branch at all
    # prompt 1: 8·σ(0.5 − 1.5) = 2.15 -> 2 whole; P_1 = 0.6, P_2 = (0.5 + 0.3)·(1 − 0.2) = 0.64: before token 2
    assert found.given[0].tolist() == [[0] * 8, [0, 0, *[2] * 6]]
    assert found.tokens[0, 1, :, 0].tolist() == [100, 110] * 4
