"""Adaptive advantage methods by hand: MAESTRO's Conductor and ARES's controllers; their state across steps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from batches import OLD, gradient, tokens

import etr
from etr import difficulty
from etr.batch import Batch
from etr.laws import random_batch
from etr.objective import State
from etr.objectives.ares import ARES

STATEFUL = ("maestro", "ares")


def zscores(rewards: list[float]) -> list[float]:
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards))
    return [(r - mean) / std for r in rewards]


def one_group(rewards: list[float], **more: Any) -> Batch:
    values = torch.tensor(rewards, dtype=torch.float64)
    ids = torch.zeros(len(rewards), dtype=torch.long)
    stats = etr.group_stats(values, ids)
    return tokens([[0.0]] * len(rewards), zscores(rewards), rewards=values, group_ids=ids, group=stats, **more)


# MAESTRO --------------------------------------------------------------------------------------------------------------


def conductor(objective: etr.Objective, *logits: float) -> State:
    state = objective.init_state((), torch.device("cpu"))
    return {**state, "conductor": torch.tensor(logits, dtype=torch.float64)}


PARTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
PLAIN_REWARDS = [0.5, 0.5, 1.0, 0.0]  # the mean of the parts


@pytest.mark.parametrize(("action", "rewards"), [(0, PLAIN_REWARDS), (1, [1, 0, 1, 0]), (2, [0, 1, 1, 0])])
def test_maestro_weighs_the_part_of_its_action(action: int, rewards: list[float]) -> None:
    """focus = 1: all weight on one part, w·c is that part; action 0 leaves the mean of the parts."""
    objective = etr.get("maestro", focus=1.0)
    state = conductor(objective, *(100.0 if a == action else 0.0 for a in range(3)))
    batch = one_group(PLAIN_REWARDS, components=PARTS, tokens=torch.arange(4).unsqueeze(-1))
    ready, _ = objective.prepare(batch, state)
    assert ready.columns["action"].tolist() == [action] * 4
    assert ready.advantages.tolist() == pytest.approx(zscores([float(r) for r in rewards]))


def test_maestro_learns_from_its_advantages() -> None:
    """b + η·(mean_i A_i (1[a_i] − π) + λ ∂H/∂b)/τ, with ∂H/∂b_a = −π_a (ln π_a + H); in plain Python."""
    objective = etr.get("maestro", focus=0.8, meta_lr=0.3, meta_entropy=0.2, temperature=2.0)
    state = conductor(objective, 0.4, -0.2, 0.6)
    rng = torch.Generator().manual_seed(0)
    batch = one_group(PLAIN_REWARDS * 4, components=PARTS.repeat(4, 1), tokens=torch.randint(9, (16, 1), generator=rng))
    ready, after = objective.prepare(batch, state)
    weights = [math.exp(b / 2) for b in (0.4, -0.2, 0.6)]
    policy = [w / sum(weights) for w in weights]
    entropy = -sum(p * math.log(p) for p in policy)
    actions, advantages = ready.columns["action"].tolist(), ready.advantages.tolist()
    for a in range(3):
        push = sum(A * ((b == a) - policy[a]) for A, b in zip(advantages, actions, strict=True)) / 16
        want = (0.4, -0.2, 0.6)[a] + 0.3 * (push - 0.2 * policy[a] * (math.log(policy[a]) + entropy)) / 2
        assert after["conductor"][a].item() == pytest.approx(want)
    assert len(set(actions)) == 3 and state["conductor"].tolist() == [0.4, -0.2, 0.6]  # the old state is as it was


def test_maestro_draws_evenly() -> None:
    """The numbers of a prompt fill [0, 1) evenly: of 64 responses each action gets its share to within 3."""
    objective = etr.get("maestro")
    state = conductor(objective, math.log(0.5), math.log(0.3), math.log(0.2))
    rng = torch.Generator().manual_seed(1)
    batch = one_group([0.0, 1.0] * 32, components=torch.ones(64, 2), tokens=torch.randint(99, (64, 1), generator=rng))
    seen = []
    for _ in range(2):
        ready, state = objective.prepare(
            batch, {**state, "conductor": conductor(objective, 0.0, 0.0, 0.0)["conductor"]}
        )
        counts = ready.columns["action"].long().bincount(minlength=3)
        assert (counts - 64 / 3).abs().max() <= 3
        seen.append(ready.columns["action"])
    assert not torch.equal(*seen)  # another step, other numbers


def test_maestro_finds_the_part_that_is_worth_most() -> None:
    """Part 0 is the verdict, part 1 is always 0: weighing the verdict more makes the best answers better yet."""
    objective = etr.get("maestro", focus=0.5, meta_entropy=0.0)
    state, rng = objective.init_state((), torch.device("cpu")), torch.Generator().manual_seed(2)
    for _ in range(30):
        right = (torch.rand(64, generator=rng) < 0.5).double()
        parts = torch.stack([right, torch.zeros(64)], -1)
        batch = one_group(right.tolist(), components=parts, tokens=torch.randint(99, (64, 1), generator=rng))
        _, state = objective.prepare(batch, state)
    assert state["conductor"].argmax().item() == 1


# ARES -----------------------------------------------------------------------------------------------------------------


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


ARES_REWARDS = [
    # excess δ, target n*, level, right, reward for a cap of 1; M = max(1, c·n*)
    (0.5, 0.0, 0, True, 0.0),  # easy, within the margin 1
    (2.0, 0.0, 0, True, -(1 / 4) / 3),  # h(1) = 1²/(2·2) over M + k = 3
    (9.0, 0.0, 0, True, -1.0),  # h(8) = 8 − 1 = 7 > 3: the cap
    (-9.0, 0.0, 0, True, 0.0),  # too few are no fault where it is easy
    (-3.0, 0.0, 1, True, -(4 / 6) / 4),  # but in the middle: h(2) = 2²/(2·3) over 1 + 3
    (2.0, 20.0, 1, True, 0.0),  # margin .25·20 = 5
    (2.0, 0.0, 2, True, logistic(3 / 3)),  # hard: s(δ + M) with T = 3
    (-1.0, 0.0, 2, True, logistic(0.0)),
    (-3.0, 0.0, 2, True, -(4 / 8) / 5 / 2),  # ½ h(2)/(1 + 4), h(2) = 2²/(2·4)
    (3.0, 0.0, 0, False, 0.6 * logistic(2 / 2)),
    (-3.0, 0.0, 1, False, 0.8 * 0.5),
    (4.0, 0.0, 2, False, logistic(3 / 3)),
]


@pytest.mark.parametrize("cap", [1.0, 0.25])
def test_entropy_rewards_of_ares(cap: float) -> None:
    excess, target, level, right, want = zip(*ARES_REWARDS, strict=True)
    found = difficulty.entropy_reward(
        torch.tensor(excess, dtype=torch.float64),
        torch.tensor(target, dtype=torch.float64),
        torch.tensor(level),
        torch.tensor(right),
        torch.tensor(cap, dtype=torch.float64),
    )
    assert found.tolist() == pytest.approx([cap * w for w in want])


def test_windows_and_levels() -> None:
    """Windows of two tokens, the last one alone; a masked token counts in none."""
    entropy = torch.tensor([[1.0, 3.0, 5.0], [2.0, 7.0, 4.0]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    near = difficulty.window_entropy(entropy, mask, 2)
    assert near[mask].tolist() == [2.0, 4.0, 5.0, 2.0, 4.0]
    assert difficulty.high(near, mask, 3.0, 0.5).tolist() == [2.0, 1.0]
    assert difficulty.high(near, mask, None, 0.5).tolist() == [1.0, 0.0]  # the median of 2 2 4 4 5 is 4
    accuracy = torch.tensor([1.0, 2 / 3, 0.5, 1 / 3, 0.3, 0.0])
    assert difficulty.Levels(accuracy, 2 / 3, 1 / 3).of.tolist() == [0, 0, 1, 1, 2, 2]


def ares_batch(right: int, entropies: list[float], gap: float = 0.0) -> Batch:
    rewards = [1.0] * right + [0.0] * (len(entropies) - right)
    return one_group(
        rewards,
        entropy=torch.tensor(entropies, dtype=torch.float64).unsqueeze(-1),
        ref_log_probs=torch.full((len(rewards), 1), OLD - gap, dtype=torch.float64),
    )


def test_ares_adapts_its_weight_and_its_target() -> None:
    """Easy (3 of 4 right). First batch: n = (1, 1, 0, 0), n* its mean ½. Then n = 1 for all: α + 0.05·(1 − ½)."""
    objective = ARES(threshold=1.0, keep=0.75, beta=0.0)
    state = objective.init_state((), torch.device("cpu"))
    _, first = objective.prepare(ares_batch(3, [2.0, 2.0, 0.0, 0.0]), state)
    assert first["target"].tolist() == [0.5, -1.0, -1.0] and first["alpha"].tolist() == [0.5] * 3
    ready, second = objective.prepare(ares_batch(3, [2.0] * 4), first)
    assert second["alpha"].tolist() == pytest.approx([0.525, 0.5, 0.5])
    assert second["target"][0].item() == pytest.approx(0.75 * 0.5 + 0.25 * 1)
    # δ = ½ < M = 1: the right get nothing, the wrong one 0.5·0.6·s(0) = .15.
    assert ready.advantages.tolist() == pytest.approx(zscores([1.0, 1.0, 1.0, 0.15]))
    for count, sign in ((4, -1), (0, 1)):  # hard: more than usual lowers α
        old = {**state, "target": torch.tensor([2.0, 2.0, 0.5]).double()}
        ready, after = objective.prepare(ares_batch(1, [2.0] * count + [0.0] * (4 - count)), old)
        # δ = ±½ and M = 1; the cap of hard prompts is 1.2·0.5.
        paid = [0.6 * logistic((-sign * 0.5 + 1) / 3), *[0.6 * logistic(0.0)] * 3]
        assert ready.columns["entropy_reward"].tolist() == pytest.approx(paid)
        assert after["alpha"][2].item() == pytest.approx(0.5 + sign * 0.05 * 0.5)


def test_ares_controls_the_kl_of_each_difficulty() -> None:
    """k3 at d = .5 is .1065: KL/target − 1 = 9.65; its average 0.03·9.65 = .29 > .2, so ln β rises by .05·.2."""
    objective = ARES(kl_every=2, alpha=0.0, alpha_rate=0.0, beta=0.3)
    state, batch = objective.init_state((), torch.device("cpu")), ares_batch(3, [0.0] * 4, gap=0.5)
    _, first = objective.prepare(batch, state)
    k3 = math.exp(-0.5) + 0.5 - 1
    assert first["kl"][0].item() == pytest.approx(0.03 * (k3 / 0.01 - 1)) and first["kl"][1:].tolist() == [0.0, 0.0]
    assert first["log_beta"].tolist() == [0.0] * 3  # not due yet
    _, second = objective.prepare(batch, first)
    assert second["log_beta"].tolist() == pytest.approx([0.01, 0.0, 0.0])
    ready, _ = objective.prepare(batch, second)
    with_penalty, plain = (
        gradient(etr.get("ares", **more), ready) for more in ({"beta": 0.3, "alpha": 0.0}, {"beta": 0.0, "alpha": 0.0})
    )
    want = 0.3 * math.exp(0.01) * (1 - math.exp(-0.5)) / 4
    assert (with_penalty[1] - plain[1]).flatten().tolist() == pytest.approx([want] * 4)


# State ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_goes_on_from_its_saved_state(name: str, tmp_path: Any) -> None:
    """Three batches, saved, loaded, three more: bit-equal to six in a row. The batches' own order matters."""
    objective = etr.get(name)
    batches = [random_batch(objective, seed=seed) for seed in range(6)]

    def run(state: State, some: list[Batch]) -> State:
        for batch in some:
            before = {k: v.clone() for k, v in state.items()}
            _, after = objective.prepare(batch, state)
            assert all(torch.equal(state[k], before[k]) for k in before)  # never changed in place
            state = after
        return state

    start = objective.init_state((), torch.device("cpu"))
    whole = run(start, batches)
    torch.save(run(start, batches[:3]), tmp_path / "state.pt")
    again = run(torch.load(tmp_path / "state.pt"), batches[3:])
    assert whole.keys() == again.keys() and all(torch.equal(whole[k], again[k]) for k in whole)
    assert any(not torch.equal(whole[k], start[k]) for k in whole)


@pytest.mark.parametrize("name", STATEFUL)
def test_runs_of_a_state_do_not_mix(name: str) -> None:
    objective, cpu = etr.get(name), torch.device("cpu")
    many = [random_batch(objective, runs=(3,), seed=seed) for seed in range(3)]
    state = objective.init_state((3,), cpu)
    singles = [objective.init_state((), cpu) for _ in range(3)]
    for batch in many:
        ready, state = objective.prepare(batch, state)
        for i in range(3):
            one = etr.laws.base.run(batch, i)
            alone, singles[i] = objective.prepare(one, singles[i])
            torch.testing.assert_close(ready.advantages[i], alone.advantages, rtol=0, atol=1e-12)
    for key, value in state.items():
        torch.testing.assert_close(value, torch.stack([s[key] for s in singles]), rtol=0, atol=1e-12)
