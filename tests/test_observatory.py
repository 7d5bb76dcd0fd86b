"""Regions, effective samples, gradient signal and alarms, against loops, enumeration and recorded runs."""

from __future__ import annotations

import csv
import itertools
import math
from pathlib import Path
from statistics import fmean

import pytest
import torch
from batches import rewards_of, tokens
from torch import Tensor

import etr
from etr import stats
from etr.batch import Batch, Mean
from etr.diagnostics import METRICS
from etr.errors import InputError
from etr.groups import GroupStats
from etr.laws import random_batch
from etr.observatory import (
    SUCCESS_EDGES,
    alarms,
    effective_share,
    entropy_change,
    gradient_signal,
    member_signal,
    observe,
    occupancy,
    pass_at_k,
    read,
    signal_from_norms,
)
from etr.oracles.estimator import gradient_moments
from etr.oracles.groups import enumerate_groups
from toy_envs import ExactModel

LOGS = Path(__file__).parents[2] / "shared" / "data" / "grpo_run_logs"
recorded = pytest.mark.skipif(not LOGS.is_dir(), reason="the recorded runs are not part of this repository")

# Ratios of the tokens of four responses in two groups, and the advantages; GRPO's range is [0.8, 1.2].
MOVED = [[1.5, 1.1, 0.5], [0.5, 0.9, 1.5], [1.3, 0.7], [2.0]]
SIGNS = [1.0, -1.0, 2.0, 0.0]


def hand_made() -> Batch:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1.0])
    group = etr.group_stats(rewards, torch.tensor([0, 0, 1, 1]))
    return tokens([[math.log(r) for r in row] for row in MOVED], SIGNS, group=group)


# Regions and ratios -----------------------------------------------------------------------------------------------


def test_occupancy_counts_tokens_with_an_advantage() -> None:
    batch = hand_made()
    found = occupancy(batch, etr.policy_loss(etr.get("grpo"), batch))
    moved = [r for row, sign in zip(MOVED, SIGNS, strict=True) for r in row if sign]
    want = {"below": sum(r < 0.8 for r in moved), "above": sum(r > 1.2 for r in moved)}
    assert (want["below"], want["above"]) == (3, 3)
    want["inside"] = len(moved) - want["below"] - want["above"]
    assert {name: (m.sum.item(), m.count.item()) for name, m in found.items()} == {
        f"region/{name}": (count, 8) for name, count in want.items()
    }


def test_width_and_share_outside_by_success_rate() -> None:
    values = read(observe(etr.get("grpo"), hand_made()))
    assert values["region/width/p0.3-0.5"].item() == pytest.approx(0.4)  # p = 1/2: a boundary belongs below
    assert values["region/outside/p0.3-0.5"].item() == pytest.approx(4 / 6)
    assert values["region/outside/p0.9-1"].item() == pytest.approx(2 / 2)
    assert values["region/outside/p0-0.1"].isnan()
    assert len([name for name in values if name.startswith("region/width/")]) == len(SUCCESS_EDGES) + 1


def test_the_effective_share_is_kishs() -> None:
    values = read(observe(etr.get("grpo"), hand_made()))
    ratios = [r for row in MOVED for r in row]
    want = sum(ratios) ** 2 / (len(ratios) * sum(r * r for r in ratios))
    assert values["policy/effective_share"].item() == pytest.approx(want)
    one, mask = torch.tensor([[0.0, 0.0, 0.0, 7.0]]), torch.ones(1, 4, dtype=torch.bool)
    assert effective_share(Mean.of(one, mask), Mean.of(one**2, mask)).item() == 0.25  # one token has all the weight


@pytest.mark.parametrize("name", ["grpo", "etr", "gspo", "grpo_wide"])
def test_observations_add_up_over_micro_batches_and_keep_runs_apart(name: str) -> None:
    objective = etr.get(name)
    batch, _ = objective.prepare(random_batch(objective), {})
    entropy = torch.ones_like(batch.log_probs)
    whole = observe(objective, batch, entropy)
    rows = [torch.arange(start, batch.log_probs.shape[-2], 3) for start in range(3)]
    parts = [observe(objective, batch.rows(r), entropy[..., r, :]) for r in rows]
    for key, mean in whole.items():
        total = sum((part[key] for part in parts[1:]), parts[0][key])
        torch.testing.assert_close(total.sum, mean.sum, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(total.count, mean.count)
    assert batch.group is not None
    other = 0.5 * batch.log_probs  # another run, which must not matter to the first
    old, mask, advantages = (torch.stack([x, x]) for x in (batch.old_log_probs, batch.response_mask, batch.advantages))
    both = Batch(
        torch.stack([batch.log_probs, other]),
        old,
        mask,
        advantages,
        group=GroupStats(**{k: torch.stack([v, v]) for k, v in vars(batch.group).items()}),
        columns={k: torch.stack([v, v]) for k, v in batch.columns.items()},
    )
    for key, mean in observe(objective, both, torch.stack([entropy, entropy])).items():
        torch.testing.assert_close(mean.sum[0], whole[key].sum, rtol=1e-10, atol=1e-12)
        if key == "policy/ratio":
            assert not torch.equal(mean.sum[0], mean.sum[1])


def test_every_value_has_a_name_with_a_meaning() -> None:
    batch = hand_made()
    values = read(observe(etr.get("grpo"), batch, torch.ones_like(batch.log_probs)))
    assert set(values) <= set(METRICS)
    assert {"entropy/change", "entropy/predicted", "region/above", "policy/effective_share"} <= set(values)
    split = entropy_change(batch, torch.ones_like(batch.log_probs), etr.gradient_coefficient(etr.get("grpo"), batch))
    torch.testing.assert_close(values["entropy/change"], split.measured.value.sum())


def test_pass_at_k_of_an_exact_chance() -> None:
    chance = torch.tensor([0.0, 1e-12, 0.3, 1.0], dtype=torch.float64)
    misses = [math.prod(1 - p for _ in range(5)) for p in chance.tolist()]
    assert pass_at_k(chance, 5).tolist() == pytest.approx([1 - m for m in misses], abs=1e-15)
    assert pass_at_k(chance, 5)[1].item() == pytest.approx(5e-12, rel=1e-9)
    drawn = torch.tensor([3_000_000.0])
    assert stats.pass_at_k(torch.tensor([10_000_000.0]), drawn, 5).item() == pytest.approx(
        pass_at_k(chance, 5)[2].item(), abs=1e-5
    )


# Gradients --------------------------------------------------------------------------------------------------------

GRADIENTS = [((1.0, 0.0), 0.5), ((0.0, 2.0), 0.3), ((-1.0, 1.0), 0.2)]  # a gradient's distribution: E g = (0.3, 0.8)


def expected(n: int, from_norms: bool) -> tuple[float, float]:
    """E[signal] and E[noise] over every sample of n pieces."""
    signal = noise = 0.0
    for drawn in itertools.product(GRADIENTS, repeat=n):
        chance = math.prod(p for _, p in drawn)
        pieces = torch.tensor([g for g, _ in drawn], dtype=torch.float64)
        found = gradient_signal(pieces)
        if from_norms:
            found = signal_from_norms(pieces[0].square().sum(), pieces.mean(0).square().sum(), n)
        signal += chance * found.signal.item()
        noise += chance * found.noise.item()
    return signal, noise


@pytest.mark.parametrize("from_norms", [False, True])
@pytest.mark.parametrize("n", [2, 3, 5])
def test_signal_and_noise_are_unbiased(n: int, from_norms: bool) -> None:
    mean = [sum(g[i] * p for g, p in GRADIENTS) for i in range(2)]
    variance = sum(((g[0] - mean[0]) ** 2 + (g[1] - mean[1]) ** 2) * p for g, p in GRADIENTS)
    want = (mean[0] ** 2 + mean[1] ** 2, variance / n)
    assert expected(n, from_norms) == pytest.approx(want, abs=1e-12)


def test_signal_is_the_mean_over_pairs_of_pieces() -> None:
    pieces = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    found = gradient_signal(pieces)
    for r in range(2):
        pairs = [float(pieces[r, i] @ pieces[r, j]) for i, j in itertools.permutations(range(4), 2)]
        assert found.signal[r].item() == pytest.approx(fmean(pairs), rel=1e-5)
        spread = sum(float((g - pieces[r].mean(0)).square().sum()) for g in pieces[r])
        assert found.noise[r].item() == pytest.approx(spread / 12, rel=1e-5)
        assert found.ratio[r].item() == pytest.approx(fmean(pairs) / (spread / 12), rel=1e-4)
    assert torch.equal(gradient_signal(torch.ones(3, 2)).noise, torch.tensor(0.0).double())


def test_one_piece_has_no_spread() -> None:
    with pytest.raises(InputError, match="at least 2 pieces"):
        gradient_signal(torch.ones(1, 5))
    with pytest.raises(InputError, match="has 1 piece"):
        signal_from_norms(torch.tensor(1.0), torch.tensor(1.0), 1)


def test_members_of_groups_are_the_pieces_of_a_table() -> None:
    """Piece i: G times the gradient of answer i to both prompts, by autograd; two runs, a tree of depth 2."""
    rng = torch.Generator().manual_seed(4)
    model = ExactModel(3, 2, torch.rand(2, 9, generator=rng, dtype=torch.float64))
    logits = torch.randn(2, 2, model.states, 3, generator=rng, dtype=torch.float64).requires_grad_()
    tokens = torch.randint(0, 3, (2, 2, 4, 2), generator=rng)
    index = model.prefix_states(tokens) * 3 + tokens
    weights = torch.randn(2, 8, 2, generator=rng, dtype=torch.float64)
    taken = logits.log_softmax(-1).flatten(-2).gather(-1, index.flatten(-2)).view(2, 2, 4, 2)
    each = (weights.view(2, 2, 4, 2) * taken).sum((0, 1, 3))
    pieces = torch.stack([4 * torch.autograd.grad(x, logits, retain_graph=True)[0].flatten(1) for x in each], 1)
    found, want = member_signal(weights, index, logits.detach()), gradient_signal(pieces)
    torch.testing.assert_close(found.signal, want.signal)
    torch.testing.assert_close(found.noise, want.noise)


@pytest.mark.parametrize(("name", "size", "low", "high"), [("dr_grpo", 4, 10 / 9, 10 / 9), ("grpo", 8, 0.84, 1.0)])
def test_signal_from_members_against_all_groups(name: str, size: int, low: float, high: float) -> None:
    """E|g|² comes out exactly; of it, the signal's share is off by what the members of a group have in common."""
    objective = etr.get(name)
    model = ExactModel(3, 1, torch.tensor([[0.3, 0.05, 0.0]], dtype=torch.float64))
    logits = torch.tensor([[[0.3, -0.5, 0.1]]], dtype=torch.float64)
    exactly, law = gradient_moments(objective, model, logits, size), enumerate_groups(logits, model, size)
    advantages = objective.advantage(law.rewards, torch.zeros(size, dtype=torch.long))
    index = law.index.unsqueeze(1)
    found = member_signal(advantages.unsqueeze(-1) / size, index, logits.expand(len(index), 1, 1, 3))
    signal, noise = (float((law.probability * x).sum()) for x in found)
    true_signal, true_noise = float(exactly.mean.square().sum()), float(exactly.covariance_trace)
    assert signal + noise == pytest.approx(true_signal + true_noise, rel=1e-9)
    assert low * (1 - 1e-9) <= signal / true_signal <= high * (1 + 1e-9)


# Alarms -----------------------------------------------------------------------------------------------------------


def kinds(*args: object, **kwargs: object) -> dict[str, int]:
    return {alarm.kind: alarm.step for alarm in alarms(*args, **kwargs)}  # type: ignore[arg-type]


def test_a_healthy_run_is_left_alone() -> None:
    n = 200
    entropy = [0.5 - 0.3 * i / n for i in range(n)]
    reward = [0.2 + 0.6 * i / n for i in range(n)]
    assert kinds(range(n), entropy, reward, [0.4] * n, 50_000) == {}


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_collapse_rings_where_a_tenth_is_left(noise: float) -> None:
    n = 200
    jitter = torch.randn(n, generator=torch.Generator().manual_seed(0)).tolist()
    entropy = [2 * math.exp(-i / 20) * (1 + noise * x) for i, x in enumerate(jitter)]
    found = kinds(range(n), entropy, [0.9] * n)
    assert set(found) == {"collapse"}
    assert found["collapse"] == pytest.approx(20 * math.log(10) + 10, abs=5)  # the window of 20 rows trails
    (alarm,) = alarms(range(n), entropy, [0.9] * n)
    assert "nats per token" in alarm.sentence and alarm.sentence.endswith("with reward 0.9")


def test_explosion_and_the_uniform_policy() -> None:
    n, most = 100, math.log(1000)
    entropy = [min(0.4 * math.exp(i / 20), 0.99 * most) for i in range(n)]
    found = kinds(range(n), entropy, vocab_size=1000)
    assert set(found) == {"explosion", "uniform"}
    doubled, near = 20 * math.log(2.2) + 5, 20 * math.log(0.9 * most / 0.4) + 5  # the median of 10 rows trails by 5
    assert found["explosion"] == pytest.approx(doubled, abs=3) and found["uniform"] == pytest.approx(near, abs=3)
    assert "of ln V" in alarms(range(n), entropy, vocab_size=1000)[0].sentence
    assert kinds(range(n), entropy).keys() == {"explosion"}


def test_a_policy_that_starts_uniform_cannot_explode() -> None:
    n, most = 50, math.log(10)
    assert kinds(range(n), [most - 0.01 + 0.0001 * i for i in range(n)], vocab_size=10) == {}
    half_way = [1.0 + 0.02 * i for i in range(n)]  # twice 1.0 is nearly ln 10: half the way up, 1.65, counts
    assert kinds(range(n), half_way, vocab_size=10)["explosion"] == pytest.approx(32, abs=4)


def test_a_crash_is_reward_down_and_entropy_up() -> None:
    n = 100
    entropy = [0.5] * 50 + [0.5 + 0.02 * i for i in range(50)]
    crashing = [0.8] * 50 + [0.8 - 0.015 * i for i in range(50)]
    found = alarms(range(n), entropy, crashing)
    assert "reward crash" in [alarm.kind for alarm in found]
    assert "at step" in next(alarm for alarm in found if alarm.kind == "reward crash").sentence
    assert "reward crash" not in kinds(range(n), entropy, [0.8] * n)  # entropy alone
    assert "reward crash" not in kinds(range(n), [0.5] * n, crashing)  # reward alone


def test_dead_groups_and_values_that_are_not_numbers() -> None:
    steps = list(range(10, 60))
    dead = [0.5] * 25 + [0.95] * 25
    entropy, reward = [1.0] * 40 + [math.nan] * 10, [0.5] * 49 + [math.inf]
    found = alarms(steps, entropy, reward, dead)
    assert [(alarm.kind, alarm.step) for alarm in found] == [
        ("dead groups", 39),  # the mean of the last 5 rows passes 0.9
        ("not a number", 50),
        ("not a number", 59),
    ]
    assert "entropy is nan" in found[1].sentence and "reward is inf" in found[2].sentence


def test_alarms_come_in_order_of_steps_and_curves_must_fit() -> None:
    n = 100
    entropy = [0.01] * 30 + [3.0] * 70
    found = alarms(range(n), [1.0] * 10 + entropy[10:], [1.0] * 50 + [0.0] * 50, [0.0] * 80 + [1.0] * 20)
    assert [alarm.step for alarm in found] == sorted(alarm.step for alarm in found)
    assert {alarm.kind for alarm in found} == {"collapse", "explosion", "reward crash", "dead groups"}
    with pytest.raises(InputError, match="reward has 3 values for 2 steps"):
        alarms([1, 2], [1.0, 1.0], [1.0, 1.0, 1.0])
    assert alarms([], []) == [] and alarms([1], None) == []


def log_of(name: str) -> dict[str, list[float]]:
    rows = list(csv.DictReader((LOGS / name).read_text().splitlines()))
    return {key: [float(row[key]) for row in rows] for key in ("step", "entropy_avg", "reward_avg", "adv_std")}


@recorded
@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("7_3_plus_tracking_metrics.csv", {"collapse": (20, 60), "explosion": (220, 280), "reward crash": (220, 280)}),
        ("7_4_plus_clip_ratio_metrics.csv", {"collapse": (30, 120), "dead groups": (50, 200)}),
        (
            "7_5_plus_kl_metrics.csv",
            {"explosion": (20, 60), "reward crash": (50, 75), "dead groups": (60, 80), "uniform": (65, 100)},
        ),
        (
            "7_6_plus_format_reward_metrics.csv",
            {"explosion": (100, 160), "reward crash": (100, 160), "collapse": (480, 500)},
        ),
    ],
)
def test_recorded_runs_ring_what_happened_in_them(name: str, want: dict[str, tuple[int, int]]) -> None:
    """The run with KL ends at ln |V| with reward 0, the clipped one loses entropy, the others rise and fall apart."""
    log = log_of(name)
    dead = [float(value == 0) for value in log["adv_std"]]
    found = kinds([int(s) for s in log["step"]], log["entropy_avg"], log["reward_avg"], dead, 151_936)
    assert set(found) == set(want)
    for kind, (low, high) in want.items():
        assert low <= found[kind] <= high, kind


def test_groups_without_statistics_are_refused() -> None:
    zeros = torch.zeros(2, 1)
    batch = Batch(zeros, zeros, zeros == 0, torch.ones(2))
    with pytest.raises(InputError, match="group statistics"):
        observe(etr.get("grpo"), batch)


def test_a_batch_at_its_own_policy_has_moved_nothing() -> None:
    rewards, ids = rewards_of(1, 2, size=4)
    old: Tensor = torch.full((8, 1), -1.0, dtype=torch.float64)
    objective = etr.get("grpo")
    advantages, group = objective.advantage(rewards, ids), etr.group_stats(rewards, ids)
    batch = Batch(old, old, torch.ones_like(old, dtype=torch.bool), advantages, group=group)
    values = read(observe(objective, batch, torch.ones_like(old)))
    assert values["policy/effective_share"].item() == 1.0 and values["region/inside"].item() == 1.0
    assert all(value.item() == 0.0 for name, value in values.items() if name.startswith("entropy/"))


def test_the_rows_that_make_the_start_are_no_explosion() -> None:
    """A noisy run whose entropy only falls: the median of its first three rows is twice that of its first five."""
    entropy = [1.572, 1.566, 0.725, 0.767, 0.470, 0.583, 0.358, 0.152]
    assert "explosion" not in kinds(range(8), entropy, vocab_size=49152)
    assert list(kinds(range(8), [1.0] * 5 + [3.0] * 3)) == ["explosion"]
