"""Trust-region methods of single tokens, third part, against arithmetic done by hand; and all of that part train.

AGPO (adaptive), M2PO, ERC, ASPO, DRO, KL-Mask and flexible entropy control; the others are in test_library_region_c2.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from batches import OLD, gradient, region_of, rewards_of, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import FieldError
from etr.objectives.m2po import cap
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

RAGGED = [[0.05, -0.3, 0.5], [0.4], [-0.1, -0.6]]
ADVANTAGES = [1.0, -2.0, 0.5]
NAMES = "adpo agpo_adaptive agpo_feedback aspo dro erc fipo flexible_entropy grpo_guard kl_mask luspo m2po real vespo"


def coefficients(objective: etr.Objective, batch: Batch) -> list[list[float]]:
    """c of every kept token, rows of their own length."""
    found = etr.gradient_coefficient(objective, batch)
    return [row[kept].tolist() for row, kept in zip(found, batch.response_mask, strict=True)]


def prepared(objective: etr.Objective, batch: Batch) -> Batch:
    return objective.prepare(batch, objective.init_state((), batch.log_probs.device))[0]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize("name", NAMES.split())
def test_it_trains(name: str, env: str) -> None:
    history = train(load_recipe(name), make_model(env), ToyConfig(iterations=50, group_size=8, seeds=4))
    assert torch.isfinite(history.logits).all()
    reward = history.curves["reward"]
    assert (reward[:, -1] > reward[:, 0]).all()


# AGPO (adaptive) ------------------------------------------------------------------------------------------------------


def test_agpo_adaptive_gives_equal_groups_a_constant() -> None:
    rewards, ids = rewards_of(4, 0, 1, size=4)
    found = etr.get("agpo_adaptive").advantage(rewards, ids)
    # one of four right: mean 1/4, std √3/4: (3/4)/(√3/4) = √3 and (−1/4)/(√3/4) = −1/√3
    assert found.tolist() == pytest.approx([1.0] * 4 + [-1.0] * 4 + [math.sqrt(3)] + [-1 / math.sqrt(3)] * 3)
    half = etr.get("agpo_adaptive", homogeneous=0.5).advantage(rewards, ids)
    assert half.tolist() == pytest.approx([0.5] * 4 + [-0.5] * 4 + found[8:].tolist())
    none = etr.get("agpo_adaptive", homogeneous=0.0).advantage(rewards, ids)
    assert torch.equal(none, etr.get("grpo").advantage(rewards, ids))
    undecided = etr.get("agpo_adaptive").advantage(torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long))
    assert not undecided.any()


# M2PO -----------------------------------------------------------------------------------------------------------------


def test_m2po_cap_by_hand() -> None:
    """(0.01 + 0.04 + c + c)/4 = 0.1 gives c = 0.175; unchosen values do not count."""
    values = torch.tensor([[0.01, 0.25], [9.0, 1.0], [0.04, 7.0]], dtype=torch.float64)
    chosen = torch.tensor([[True, True], [False, True], [True, False]])
    assert cap(values, chosen, 0.1).item() == pytest.approx(0.175)
    assert cap(values, chosen, 0.32).item() == pytest.approx(0.98)  # (0.01 + 0.04 + 0.25 + 0.98)/4
    assert cap(values, chosen, 0.325).item() == math.inf  # the mean of all four: no cap is needed
    assert cap(values, chosen, 0.0).item() == 0.0
    assert cap(values, torch.zeros_like(chosen), 0.1).item() == math.inf


@pytest.mark.parametrize("budget", [1e-3, 0.04, 0.3])
def test_m2po_spends_the_whole_budget(budget: float) -> None:
    """mean min(v, cap) = budget, in each of several runs."""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(3, 7, 5, generator=rng, dtype=torch.float64).square()
    chosen = torch.rand(3, 7, 5, generator=rng) < 0.6
    caps = cap(values, chosen, budget).flatten().tolist()
    for i, found in enumerate(caps):
        capped = [min(v, found) for v in values[i][chosen[i]].tolist()]
        assert sum(capped) / len(capped) == pytest.approx(budget, rel=1e-9)


HARMFUL = [[0.1, 0.2, 0.5], [-1.0, 0.8, -0.0]]  # of r; with A = 1 and −1 harmful are 0.1, 0.2, 0.5 and −1


def test_m2po_clips_harmful_tokens_beyond_tau() -> None:
    """log²r of the harmful: 0.01, 0.04, 0.25, 1; budget 0.1: τ² = 0.175, so that 0.5 and −1 are clipped."""
    tau = math.sqrt(0.175)
    batch = tokens(HARMFUL, [1.0, -1.0])
    objective = etr.get("m2po", eps_low=0.0, eps_high=0.0, budget=0.1)
    low, high = region_of(objective, batch)
    assert low.unique().tolist() == pytest.approx([math.exp(-tau)])
    assert high.unique().tolist() == pytest.approx([math.exp(tau)])
    want = [[math.exp(0.1), math.exp(0.2), 0.0], [0.0, -math.exp(0.8), -1.0]]
    assert coefficients(objective, batch) == [pytest.approx(row) for row in want]
    # Never narrower than the fields say: e^{−τ} = 0.658 and e^τ = 1.519.
    low, high = region_of(etr.get("m2po", budget=0.1), batch)
    assert (low[0, 0].item(), high[0, 0].item()) == pytest.approx((math.exp(-tau), math.exp(tau)))
    low, high = region_of(etr.get("m2po", budget=0.1, eps_low=0.4, eps_high=0.6), batch)
    assert (low[0, 0].item(), high[0, 0].item()) == pytest.approx((0.6, 1.6))


def test_m2po_leaves_a_batch_within_the_budget_alone() -> None:
    """Also far tokens, where they are few or move against A: then there is no region."""
    batch = tokens([[0.1, 0.2, -3.0]], [1.0])
    region = region_of(etr.get("m2po"), batch)
    assert (region.low == 0).all() and (region.high == math.inf).all()
    assert coefficients(etr.get("m2po"), batch)[0] == pytest.approx([math.exp(x) for x in (0.1, 0.2, -3.0)])


# ERC ------------------------------------------------------------------------------------------------------------------


def with_entropy(ratios: list[float], log_ratio: list[float], advantage: float) -> tuple[etr.Objective, Batch]:
    """One response whose entropies have moved by these ratios since the start of the update."""
    objective, batch = etr.get("erc"), tokens([log_ratio], [advantage])
    old = torch.full_like(batch.log_probs, 0.8)
    batch = prepared(objective, replace(batch, entropy=old))
    return objective, replace(batch, entropy=old * torch.tensor(ratios))


def test_erc_cuts_the_gradient_where_entropy_moved_too_far() -> None:
    """Inside (0.95, 1.05) are the first two and the last, whose r = 1.35 is beyond DAPO's 1.28."""
    objective, batch = with_entropy([1.04, 0.96, 1.06, 0.94, 1.0], [0.1, -0.3, 0.1, -0.3, 0.3], 1.0)
    ratios = [math.exp(x) for x in (0.1, -0.3, 0.1, -0.3)]
    out = etr.policy_loss(objective, batch)
    assert out.per_token[0].tolist() == pytest.approx([*ratios, 1.28])  # the values stay
    assert coefficients(objective, batch)[0] == pytest.approx([*ratios[:2], 0.0, 0.0, 0.0])
    _, found = gradient(objective, batch)
    assert found[0].tolist() == pytest.approx([-ratios[0] / 5, -ratios[1] / 5, 0.0, 0.0, 0.0])  # five tokens


# ASPO -----------------------------------------------------------------------------------------------------------------

FLIPPED = [
    # r, A, cap, c
    (0.5, 2.0, 3.0, 4.0),  # 1/r = 2: the token that fell behind is pulled harder
    (1.1, 1.0, 3.0, 1 / 1.1),  # 1/r: the one ahead less
    (1.3, 1.0, 3.0, 0.0),  # beyond 1 + 0.2
    (0.2, 1.0, 3.0, 3.0),  # 1/r = 5 is cut to 3 and keeps its gradient
    (0.2, 1.0, None, 5.0),
    (0.9, -1.0, 3.0, -0.9),  # r, as in PPO
    (0.7, -1.0, 3.0, 0.0),  # below 1 − 0.2
    (5.0, -2.0, 3.0, -6.0),  # r = 5 is cut to 3
    (5.0, -2.0, None, -10.0),
]


@pytest.mark.parametrize(("ratio", "advantage", "dual_clip", "want"), FLIPPED)
def test_aspo_one_token(ratio: float, advantage: float, dual_clip: float | None, want: float) -> None:
    batch = tokens([[math.log(ratio)]], [advantage])
    objective = etr.get("aspo", dual_clip=dual_clip)
    assert coefficients(objective, batch)[0] == pytest.approx([want], rel=1e-12)
    _, found = gradient(objective, batch)
    assert found.item() == pytest.approx(-want, rel=1e-12)
    weight = want / advantage
    assert etr.policy_loss(objective, batch).loss.item() == pytest.approx(-weight * advantage * (OLD + math.log(ratio)))


def test_aspo_of_good_tokens_never_pulls_harder_for_being_ahead() -> None:
    grid = torch.linspace(-2, 0.18, 40).tolist()
    found = coefficients(etr.get("aspo"), tokens([grid], [1.0]))[0]
    assert all(a >= b > 0 for a, b in pairwise(found)) and found[0] == 3.0


# DRO ------------------------------------------------------------------------------------------------------------------


def test_dro_loss_and_gradient() -> None:
    """L = −(1/N) Σ [A·log π − (τ/2)·log²r] and ∂L/∂log π = −(A − τ·log r)/N, N = 6 tokens."""
    batch, tau = tokens(RAGGED, ADVANTAGES), 0.4
    loss, found = gradient(etr.get("dro", tau=tau), batch)
    pairs = [[(x, a) for x in row] for row, a in zip(RAGGED, ADVANTAGES, strict=True)]
    want = -sum(a * (OLD + x) - tau / 2 * x * x for row in pairs for x, a in row) / 6
    assert loss.item() == pytest.approx(want, rel=1e-12)
    slopes = [[-(a - tau * x) / 6 for x, a in row] for row in pairs]
    kept = [row[mask].tolist() for row, mask in zip(found, batch.response_mask, strict=True)]
    assert kept == [pytest.approx(row, rel=1e-12) for row in slopes]


def test_dro_spring_is_the_kl_between_the_policies_to_second_order() -> None:
    """Σ_a π_old(a)·½·log²(π/π_old) against KL(π_old ‖ π), over a whole vocabulary, for a small step."""
    rng = torch.Generator().manual_seed(0)
    logits, step = torch.randn(6, generator=rng).double(), 1e-3 * torch.randn(6, generator=rng).double()
    old, new = logits.log_softmax(-1), (logits + step).log_softmax(-1)
    batch = Batch(new[:, None], old[:, None], torch.ones(6, 1) > 0, torch.zeros(6, dtype=torch.float64))
    penalty = etr.get("dro", tau=1.0).regularizer(batch.clean())
    assert penalty is not None
    kl = (old.exp() * (old - new)).sum().item()
    assert (old.exp() * penalty[:, 0]).sum().item() == pytest.approx(kl, rel=1e-2) and kl > 0


def test_dro_advantage_is_the_centred_reward() -> None:
    assert etr.get("dro").advantage(*rewards_of(1, size=4)).tolist() == [0.75, -0.25, -0.25, -0.25]


# KL-Mask --------------------------------------------------------------------------------------------------------------


def test_kl_mask_drops_tokens_far_from_the_reference_on_both_sides() -> None:
    """½d²: 0.405, 0.605, 0.605, 0.5 against 0.5; the mean is still over all four."""
    gaps = torch.tensor([[0.9, 1.1, -1.1, 1.0]], dtype=torch.float64)
    batch = tokens([[0.1] * 4], [1.0])
    batch = replace(batch, ref_log_probs=batch.log_probs - gaps)
    loss, found = gradient(etr.get("kl_mask"), batch)
    r = math.exp(0.1)
    assert loss.item() == pytest.approx(-2 * r / 4)
    assert found[0].tolist() == pytest.approx([-r / 4, 0.0, 0.0, -r / 4])
    assert coefficients(etr.get("kl_mask", delta=0.45), batch)[0] == pytest.approx([r, 0.0, 0.0, 0.0])


# Flexible entropy control ---------------------------------------------------------------------------------------------


def schedule(objective: etr.Objective, count: int, entropies: list[float] | None = None) -> list[tuple[float, float]]:
    """(u, v) of the first `count` rollout batches, of policies with these mean entropies."""
    state, found = objective.init_state((), torch.device("cpu")), []
    for k in range(count):
        batch = tokens([[0.0, 0.0], [0.0]], [1.0, -1.0])
        entropy = torch.full_like(batch.log_probs, 0.0 if entropies is None else entropies[k])
        batch, state = objective.prepare(replace(batch, entropy=entropy), state)
        assert all((batch.columns[name] == batch.columns[name][0]).all() for name in objective.columns)
        found.append(tuple(batch.columns[name][0].item() for name in objective.columns))
    return [(u, v) for u, v in found]


def test_flexible_entropy_schedules() -> None:
    """λ = 1, ½, 0, −½, −1 over four steps, then the last one stays."""
    first = [(1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (0.0, 0.5), (0.0, 0.0), (0.0, 0.0)]
    assert schedule(etr.get("flexible_entropy", steps=4), 6) == first
    second = [(0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (1.0, 0.5), (1.0, 0.0), (1.0, 0.0)]
    assert schedule(etr.get("flexible_entropy", schedule="did", steps=4), 6) == second


def test_flexible_entropy_oscillates_between_its_thresholds() -> None:
    """H₀ = 1: raised from H ≤ 0.2 on, lowered from H > 0.2 + 0.8·(1 − k/10): 1, .92, .84, .76, .68, .6 for k to 5."""
    objective = etr.get("flexible_entropy", schedule="od", steps=10)
    found = schedule(objective, 6, [1.0, 0.5, 0.19, 0.5, 0.7, 0.5])
    assert found == [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]


@pytest.mark.parametrize("likely", [0.01, 0.3, 0.9])
def test_flexible_entropy_bounds_hold_with_the_current_probability(likely: float) -> None:
    """At the bound itself r − 1 = height − slope·π with π = r·π_old, and 1 − r likewise below."""
    objective = etr.get("flexible_entropy", height=0.35, slope=0.25)
    old = torch.full((2, 1), math.log(likely), dtype=torch.float64)
    batch = Batch(old, old, old < 0, torch.tensor([1.0, -1.0]).double())
    batch = batch.with_columns(flexible_upper=torch.ones(2).double(), flexible_lower=torch.ones(2).double())
    low, high = (bound[0, 0].item() for bound in region_of(objective, batch))
    assert high - 1 == pytest.approx(0.35 - 0.25 * high * likely)
    assert 1 - low == pytest.approx(0.35 - 0.25 * low * likely)


def test_flexible_entropy_mixes_the_bounds_and_clips() -> None:
    """u = ½ of ε(π) = 0.3 − 0.2·π and of 0.2: 0.25 − 0.1·π; π_old = e^−2: high = 1.25/(1 + 0.1·e^−2) = 1.2333."""
    objective = etr.get("flexible_entropy", steps=4)
    state = objective.init_state((), torch.device("cpu"))
    batch = tokens([[math.log(1.23), math.log(1.24), math.log(0.79)]], [1.0])
    _, state = objective.prepare(batch, state)
    batch, _ = objective.prepare(batch, state)
    low, high = (bound[0, 0].item() for bound in region_of(objective, batch))
    assert (low, high) == pytest.approx((0.8, 1.25 / (1 + 0.1 * math.exp(OLD))))
    assert coefficients(objective, batch)[0] == pytest.approx([1.23, 0.0, 0.79])


def random_batches(runs: tuple[int, ...], count: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        return -torch.rand((*runs, 4, 3), generator=rng, dtype=torch.float64)

    mask = torch.ones((*runs, 4, 3), dtype=torch.bool)
    return [Batch(old := draw(), old, mask, draw()[..., 0], entropy=-draw() * 0.9**k) for k in range(count)]


@pytest.mark.parametrize("kind", ["id", "did", "od"])
def test_a_saved_state_goes_on_bit_by_bit_and_runs_do_not_mix(kind: str, tmp_path: object) -> None:
    objective = etr.get("flexible_entropy", schedule=kind, steps=5)
    batches, state = random_batches((3,), 6), objective.init_state((3,), torch.device("cpu"))
    columns = []
    for k, batch in enumerate(batches):
        if k == 3:
            torch.save(state, f"{tmp_path}/state.pt")
            state = torch.load(f"{tmp_path}/state.pt")
        before = {name: value.clone() for name, value in state.items()}
        after, new = objective.prepare(batch, state)
        assert all(torch.equal(state[name], before[name]) for name in state)  # never changed in place
        columns.append(torch.stack([after.columns[name] for name in objective.columns]))
        state = new
    for run in range(3):
        alone = objective.init_state((), torch.device("cpu"))
        for batch, found in zip(batches, columns, strict=True):
            assert batch.entropy is not None
            log_probs, old, mask = (x[run] for x in (batch.log_probs, batch.old_log_probs, batch.response_mask))
            one = Batch(log_probs, old, mask, batch.advantages[run], entropy=batch.entropy[run])
            after, alone = objective.prepare(one, alone)
            assert torch.equal(torch.stack([after.columns[name] for name in objective.columns]), found[:, run])


BAD: list[tuple[str, dict[str, object], str]] = [
    ("agpo_adaptive", {"homogeneous": -1.0}, "AGPOAdaptive.homogeneous is -1; give a number from 0 "),
    ("agpo_feedback", {"spread": -0.1}, "AGPOFeedback.spread is -0.1; give a number from 0 "),
    ("grpo_guard", {"kind": "stat"}, "unknown GRPOGuard.kind 'stat'; did you mean 'state'"),
    ("grpo_guard", {"strength": 2.0}, "GRPOGuard.strength is 2; give a number from 0 to 1"),
    ("m2po", {"budget": -0.1}, "M2PO.budget is -0.1; give a number from 0 "),
    ("erc", {"delta_low": 0.0}, "ERC.delta_low is 0; give a number above 0"),
    ("vespo", {"k_neg": -1.0}, "VESPO.k_neg is -1; give a number from 0 "),
    ("fipo", {"half_life": 0.0}, "FIPO.half_life is 0; give a number above 0"),
    ("fipo", {"weight_low": 1.1}, "FIPO.weight_low is 1.1; give a number from 0 to 1"),
    ("fipo", {"weight_high": 0.9}, "FIPO.weight_high is 0.9; give a number from 1 "),
    ("real", {"tau": 0.0}, "REAL.tau is 0; give a number above 0"),
    ("adpo", {"tau": 0.0}, "ADPO.tau is 0; give a number above 0"),
    ("adpo", {"reward_temperature": 0.05}, "ADPO.reward_temperature is 0.05; give a number from 0.1 "),
    ("dro", {"tau": -1.0}, "DRO.tau is -1; give a number from 0 "),
    ("kl_mask", {"delta": 0.0}, "KLMask.delta is 0; give a number above 0"),
    ("flexible_entropy", {"schedule": "di"}, "unknown FlexibleEntropy.schedule 'di'; did you mean 'did'"),
    ("flexible_entropy", {"steps": 0}, "FlexibleEntropy.steps is 0; give a number from 1 "),
    ("flexible_entropy", {"slope": 0.4}, "FlexibleEntropy.slope is 0.4; give a number from 0 to 0.3"),
]


@pytest.mark.parametrize(("name", "fields", "sentence"), BAD)
def test_numbers_out_of_range_are_refused(name: str, fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(FieldError) as error:
        etr.get(name, **fields)
    assert sentence in str(error.value)
