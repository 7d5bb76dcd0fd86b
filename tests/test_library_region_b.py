"""Trust-region methods against arithmetic that can be done by hand: ratios mixed, penalised, ranged, in pairs."""

from __future__ import annotations

import dataclasses
import itertools
import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from batches import OLD, bandit, gradient, region_of, rewards_of, tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import InputError
from etr.objective import Objective
from etr.objectives.dcpo_dynamic import DCPODynamic
from etr.objectives.hapo import HAPO
from etr.objectives.mdpo import MDPO


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logs(*ratios: float) -> list[float]:
    return [math.log(r) for r in ratios]


def values_and_coefficients(objective: Objective, batch: Batch) -> tuple[list[float], list[float]]:
    """Per-token objective and c of the first response."""
    out = etr.policy_loss(objective, batch)
    return out.per_token[0].tolist(), etr.gradient_coefficient(objective, batch)[0].tolist()


# DHPO ---------------------------------------------------------------------------------------------------------------


def test_dhpo_clips_both_branches_and_then_mixes() -> None:
    objective = etr.get("dhpo", eps_seq_low=0.5, eps_seq_high=0.5)
    found = values_and_coefficients(objective, tokens([logs(1.5, 0.9)], [1.0]))
    s = math.sqrt(1.5 * 0.9)  # 1.162, inside [0.5, 1.5]
    assert found[0] == pytest.approx([0.5 * 1.28 + 0.5 * s, 0.5 * 0.9 + 0.5 * s])
    assert found[1] == pytest.approx([0.0 + 0.5 * s, 0.5 * 0.9 + 0.5 * s])  # 1.5 is above 1.28: only s is left
    narrow = values_and_coefficients(etr.get("dhpo"), tokens([logs(1.5, 0.9)], [1.0]))
    assert narrow[0] == pytest.approx([0.5 * 1.28 + 0.5 * 1.0004, 0.5 * 0.9 + 0.5 * 1.0004])
    assert narrow[1] == pytest.approx([0.0, 0.45])


def test_dhpo_follows_the_token_where_entropy_is_high() -> None:
    objective = etr.get("dhpo", mixing="entropy", eps_seq_low=0.5, eps_seq_high=0.5)
    batch = tokens([logs(1.1, 0.9), logs(1.2)], [1.0, 1.0], entropy=double([[2.0, 0.5], [1.0, torch.nan]]))
    s = math.sqrt(1.1 * 0.9)
    found = etr.policy_loss(objective, batch).per_token
    assert found[0].tolist() == pytest.approx([1.1, 0.25 * 0.9 + 0.75 * s])  # w = 2/2 and 0.5/2
    assert found[1, 0].item() == pytest.approx(1.2)  # one token: both ratios are the same


def test_dhpo_without_the_token_branch_has_gspos_gradient() -> None:
    batch = tokens([[0.05, -0.3, 0.5], [0.4], [-0.1, -0.6]], [1.0, -2.0, 0.5])
    found = gradient(etr.get("dhpo", weight=0.0, eps_seq_low=0.2, eps_seq_high=0.2), batch)
    for got, want in zip(found, gradient(etr.get("gspo", eps_low=0.2, eps_high=0.2), batch), strict=True):
        torch.testing.assert_close(got, want)


# R²VPO --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "ratio", "advantage", "value", "coefficient"),
    [
        (0.04, 1.5, 1.0, 1.49, 1.44),  # 1.5 − 0.04·0.25, and 1.5·(1 − 2·0.04·0.5)
        (1.0, 1.5, 1.0, 1.25, 0.0),  # r* = 1 + 1/(2·1): the top of the parabola
        (1.0, 2.0, 1.0, 1.0, -2.0),  # beyond it: 2·(1 − 2·1) pulls back
        (1.0, 0.5, -1.0, -0.75, 0.0),  # r* = 1 − ½
        (1.0, 1.5, 0.0, -0.25, -1.5),  # without an advantage only the penalty
    ],
)
def test_r2vpo_one_token(weight: float, ratio: float, advantage: float, value: float, coefficient: float) -> None:
    found = values_and_coefficients(etr.get("r2vpo", variance_weight=weight), tokens([logs(ratio)], [advantage]))
    assert found[0][0] == pytest.approx(value) and found[1][0] == pytest.approx(coefficient, abs=1e-12)


def test_r2vpo_dual_variable_finds_the_weight_that_spends_the_variance() -> None:
    objective = etr.get("r2vpo", dual=True, variance_weight=2.0)
    batch = tokens([[0.1, 0.2], [0.3]], [2.0, -1.0])  # E[A²] over tokens: (4 + 4 + 1)/3 = 3
    state = objective.init_state((), torch.device("cpu"))
    prepared, first = objective.prepare(batch, state)
    assert prepared.columns["r2vpo_weight"].tolist() == [2.0, 2.0] and state["r2vpo_dual"].item() == 2.0
    # E[(A/2λ)²] = 3/16, over δ = 0.04 that is 4.7: more than twice the budget, so one full step of 10 per cent
    assert first["r2vpo_dual"].item() == pytest.approx(2 * math.exp(0.1))
    near, _ = objective.prepare(tokens([[0.0]], [1.0]), state)[1], None
    assert near["r2vpo_dual"].item() == pytest.approx(2 * math.exp(0.1 * (1 / 16 / 0.04 - 1)))
    for start in (0.04, 50.0):
        state = {"r2vpo_dual": double(start)}
        for _ in range(300):
            state = objective.prepare(batch, state)[1]
        assert state["r2vpo_dual"].item() == pytest.approx(0.5 * math.sqrt(3 / 0.04), rel=1e-9)
    still = objective.prepare(tokens([[0.1]], [0.0]), state)[1]
    assert torch.equal(still["r2vpo_dual"], state["r2vpo_dual"])
    with pytest.raises(InputError, match="variance_weight"):
        etr.get("r2vpo", dual=True, variance_weight=0.0)


# HAPO ---------------------------------------------------------------------------------------------------------------

LEVELS = [0.0, 1.0, 2.0, -1.0, -2.0]  # log H of five tokens: median 0, scores 0, ½, 1, −½, −1


def five_tokens(ratios: list[float], advantage: float, levels: list[float] = LEVELS) -> Batch:
    more = {"rewards": double([1.0]), "group_ids": torch.zeros(1, dtype=torch.long)}
    return tokens([logs(*ratios)], [advantage], entropy=double([levels]).exp(), **more)


def test_hapo_scores() -> None:
    batch = five_tokens([1.0] * 5, 1.0)
    objective = HAPO(pivot=0.5)
    assert batch.entropy is not None
    assert objective.scores(batch.entropy, batch.response_mask)[0].tolist() == pytest.approx(
        [0.0, 0.5, 1.0, -0.5, -1.0]
    )
    longer = double([[0.0, 1.0, 2.0, -1.0, -4.0]]).exp()  # each side has its own scale
    assert objective.scores(longer, batch.response_mask)[0].tolist() == pytest.approx([0.0, 0.5, 1.0, -0.25, -1.0])
    literal = dataclasses.replace(objective, literal_scores=True)
    assert literal.scores(batch.entropy, batch.response_mask)[0].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.5, 1.0])
    same = torch.ones(1, 5, dtype=torch.float64) + 1e-9 * double(LEVELS)
    assert (objective.scores(same, batch.response_mask) == 0).all()  # rounding is no difference


def test_hapo_ranges_and_redistribution() -> None:
    """Bounds [1 − 0.2·(1 − ĥ⁻), 1 + 0.2·(1 + ĥ⁺)]; Z is half as wide."""
    objective = etr.get("hapo", pivot=0.5, token_average=False)
    region = region_of(objective, five_tokens([1.0] * 5, 1.0))
    assert region.low[0].tolist() == pytest.approx([0.8, 0.8, 0.8, 0.7, 0.6])
    assert region.high[0].tolist() == pytest.approx([1.2, 1.3, 1.4, 1.2, 1.2])
    up = values_and_coefficients(objective, five_tokens([1.3, 1.1, 1.3, 1.05, 1.15], 1.0))
    # ĥ = 0: clipped at 1.2; ½, inside Z (0.9, 1.15): A; 1, outside (0.9, 1.2): 2A; −½ inside (0.85, 1.1): A/2;
    # −1 outside (0.8, 1.1): A
    assert up[0] == pytest.approx([1.2, 1.1, 2.6, 0.525, 1.15])
    assert up[1] == pytest.approx([0.0, 1.1, 2.6, 0.525, 1.15])
    down = values_and_coefficients(objective, five_tokens([0.7, 0.85, 0.7, 0.65, 0.7], -1.0))
    # ĥ = 0: below 0.8; ½ outside (0.9, 1.15): 1.5·0.85; 1 outside: 2·0.8; −½ outside (0.85, 1.1): 0.7; −1: above 0.6
    assert down[0] == pytest.approx([-0.8, -1.275, -1.6, -0.7, -0.7])
    assert down[1] == pytest.approx([0.0, -1.275, 0.0, 0.0, -0.7])
    rest = values_and_coefficients(objective, five_tokens([1.0] * 5, 1.0))
    assert rest[1] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])  # certain tokens start with less


def test_hapo_group_average_counts_tokens() -> None:
    """Lengths 3 and 1, rewards 1 and 0: μ = 3/4, σ² = 3/16. Lengths 1 and 30: |A| = √30 > 5, so z-scores."""
    objective = etr.get("hapo", advantage_gain=0.0)
    for lengths, want in (((3, 1), [1 / math.sqrt(3), -math.sqrt(3)]), ((1, 30), [1.0, -1.0])):
        more = {"rewards": double([1.0, 0.0]), "group_ids": torch.zeros(2, dtype=torch.long)}
        mask = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(-1)
        batch = tokens([[0.0] * n for n in lengths], [9.0, 9.0], entropy=mask.double(), **more)
        advantages = objective.prepare(batch, {})[0].advantages
        assert advantages.tolist() == pytest.approx(want, abs=1e-5)


# DCPO ---------------------------------------------------------------------------------------------------------------


def test_dcpo_regions() -> None:
    """At its bounds |r − 1|·r·q = ε, except where no ratio gets there (low = ½) or the cap ends it."""
    q = double([[0.5, 0.9, 0.001]])
    batch = Batch(q.log(), q.log(), torch.ones_like(q, dtype=torch.bool), double([1.0]))
    region = region_of(etr.get("dcpo_dynamic"), batch)
    assert region.low[0].tolist() == pytest.approx([0.5, 0.5 + 0.5 * math.sqrt(1 - 0.64 / 0.9), 0.5])
    assert region.high[0].tolist() == pytest.approx(
        [0.5 + 0.5 * math.sqrt(2.6), 0.5 + 0.5 * math.sqrt(1.7 / 0.9), 10.0]
    )
    assert ((region.high - 1) * region.high * q)[0, :2].tolist() == pytest.approx([0.2, 0.2])
    assert ((1 - region.low) * region.low * q)[0, 1].item() == pytest.approx(0.16)
    rare = tokens([logs(2.0)], [1.0])  # q = e⁻², high = ½ + ½√(1 + 0.8·e²) = 1.81 < 2
    assert values_and_coefficients(etr.get("dcpo_dynamic"), rare)[0][0] == pytest.approx(
        0.5 + 0.5 * math.sqrt(1 + 0.8 * math.exp(-OLD))
    )
    assert etr.gradient_coefficient(etr.get("dcpo_dynamic"), rare).item() == 0.0


def smoothed(history: list[list[float]]) -> list[float]:
    """The advantages of the last visit, in plain Python."""
    i, new, everything = len(history), history[-1], [r for visit in history for r in visit]

    def score(r: float, values: list[float]) -> float:
        return (r - fmean(values)) / pstdev(values) if pstdev(values) > 0 else 0.0

    pairs = [(score(r, new), score(r, everything)) for r in new]
    return [min(((i - 1) * a + b) / i, (a + (i - 1) * b) / i, key=abs) for a, b in pairs]


def test_dcpo_smooths_over_the_visits_of_a_prompt() -> None:
    objective = DCPODynamic(prompts=2)
    visits = [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0] * 4, [0.0, 1.0, 0.0, 0.0]]
    other = [[0.0] * 4, [0.0] * 4, [0.0, 0.0, 0.0, 1.0], [0.0] * 4]
    state, ids = objective.init_state((), torch.device("cpu")), torch.tensor([0, 1] * 4)
    for n, (first, second) in enumerate(zip(visits, other, strict=True), start=1):
        rewards = double([first, second]).T.flatten()
        batch = dataclasses.replace(bandit(objective, rewards, ids), rewards=rewards, group_ids=ids)
        batch, state = objective.prepare(batch, state)
        assert batch.advantages[0::2].tolist() == pytest.approx(smoothed(visits[:n]), abs=1e-12)
        assert batch.advantages[1::2].tolist() == pytest.approx(smoothed(other[:n]), abs=1e-12)
        if n == 3:  # all right this time: GRPO would learn nothing, the history still does
            assert (batch.advantages[0::2] > 0.1).all()
    with pytest.raises(InputError, match="group_ids"):
        objective.prepare(dataclasses.replace(batch, group_ids=ids + 1), state)


# TRPA ---------------------------------------------------------------------------------------------------------------


def preference_loss(
    log_probs: Tensor, ref: Tensor, mask: Tensor, rewards: list[float], groups: list[list[int]]
) -> Tensor:
    """The paper's loss: mean over groups of the mean over pairs of −log σ(h); without pairs −log σ(±u)."""
    u = torch.where(mask, log_probs - ref, 0.0).sum(-1) / mask.sum(-1)
    losses = []
    for members in groups:
        pairs = [(w, v) for w, v in itertools.permutations(members, 2) if rewards[w] > rewards[v]]
        margins = [(2.5 if rewards[w] >= 1 else 1.0) * 0.1 * (u[w] - u[v]) for w, v in pairs]
        margins = margins or [u[i] if rewards[i] >= 1 else -u[i] for i in members]
        losses.append(-torch.stack(margins).sigmoid().log().mean())
    return torch.stack(losses).mean()


def test_trpa_takes_the_paper_s_first_step() -> None:
    rng = torch.Generator().manual_seed(0)
    old, ref = (-torch.rand(12, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(4) < torch.randint(1, 5, (12, 1), generator=rng)
    rewards = double([1.0, 0.0, 0.5, 0.5, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    batch = Batch(
        old, old, mask, rewards, ref_log_probs=ref, rewards=rewards, group_ids=torch.arange(3).repeat_interleave(4)
    )
    leaf = old.clone().requires_grad_()
    groups = [list(range(start, start + 4)) for start in (0, 4, 8)]
    (want,) = torch.autograd.grad(preference_loss(leaf, ref, mask, rewards.tolist(), groups), leaf)
    torch.testing.assert_close(gradient(etr.get("trpa"), batch)[1], torch.where(mask, want, 0.0))


def test_trpa_by_hand() -> None:
    """u = 0: σ(0) = ½, so ±G·c·β/2 = ±2·2.5·0.1/2; alone ±½. The penalty is κ·(e^{−d} + d − 1)."""
    ids = torch.tensor([0, 0, 1, 1])
    more = {"group_ids": ids, "ref_log_probs": torch.full((4, 1), OLD, dtype=torch.float64)}
    batch = tokens([[0.0]] * 4, [0.0] * 4, rewards=double([1.0, 0.0, 1.0, 1.0]), **more)
    assert etr.get("trpa").prepare(batch, {})[0].advantages.tolist() == pytest.approx([0.25, -0.25, 0.5, 0.5])
    moved = tokens([[0.4]] * 4, [0.0] * 4, rewards=double([0.0, 1.0, 0.0, 0.0]), **more)
    losses = [etr.policy_loss(etr.get("trpa", kl_weight=k), moved).loss.item() for k in (0.0, 3.0)]
    assert losses[1] - losses[0] == pytest.approx(3 * (math.exp(-0.4) + 0.4 - 1))


# MDPO ---------------------------------------------------------------------------------------------------------------


def test_mdpo_divergences() -> None:
    new, old = [0.7, 0.2, 0.1], [0.5, 0.25, 0.25]
    tables = double(new).log(), double(old).log()
    kl = sum(p * math.log(p / q) for p, q in zip(new, old, strict=True))
    assert MDPO().divergence(*tables).item() == pytest.approx(kl)
    assert MDPO(kind="tsallis").divergence(*tables).item() == pytest.approx(0.04 + 0.0025 + 0.0225)  # Σ (π − π_old)²
    assert MDPO(kind="tsallis", tsallis_q=1 + 1e-6).divergence(*tables).item() == pytest.approx(kl, rel=1e-5)
    for q in (0.5, 1.5, 3.0):
        assert MDPO(kind="tsallis", tsallis_q=q).divergence(*tables).item() > 0
        assert MDPO(kind="tsallis", tsallis_q=q).divergence(tables[1], tables[1]).item() == pytest.approx(0, abs=1e-15)
    with pytest.raises(InputError, match="tsallis_q"):
        MDPO(tsallis_q=1.0)


def enumerated(logits: Tensor, old: Tensor, advantages: Tensor) -> Batch:
    """One response for every token of a small vocabulary, weighted by V·π_old: means are expectations."""
    size = old.shape[-1]
    full = logits.log_softmax(-1).expand(size, 1, size)
    return Batch(
        log_probs=full[:, 0].diagonal().unsqueeze(-1),
        old_log_probs=old.unsqueeze(-1),
        response_mask=torch.ones(size, 1, dtype=torch.bool),
        advantages=advantages,
        weights=size * old.exp().unsqueeze(-1),
        full_log_probs=full,
    )


def test_mdpo_s_maximum_is_multiplicative_weights() -> None:
    """E[r·A] − (1/t)·KL(π ‖ π_old) has gradient 0 at π ∝ π_old·exp(t·A), and elsewhere that of the enumeration."""
    old, advantages, t = double([0.1, 0.2, 0.3, 0.4]).log(), double([1.0, -1.0, 0.5, 0.0]), 2.0
    objective = etr.get("mdpo", kl_weight=1 / t)
    start = enumerated(old, old, advantages)
    prepared, _ = objective.prepare(start, objective.init_state((), torch.device("cpu")))
    for shift, zero in ((t * advantages, True), (double([0.3, 0.0, -0.2, 0.1]), False)):
        logits = (old + shift).requires_grad_()
        batch = dataclasses.replace(enumerated(logits, old, advantages), columns=prepared.columns)
        (found,) = torch.autograd.grad(etr.policy_loss(objective, batch).loss, logits)
        new = logits.log_softmax(-1)
        exact = -(new.exp() * advantages).sum() + (new.exp() * (new - old)).sum() / t
        torch.testing.assert_close(found, torch.autograd.grad(exact, logits)[0])
        assert (found.abs().max().item() < 1e-12) == zero


def test_mdpo_anneals_its_step_size() -> None:
    objective = etr.get("mdpo", anneal_steps=4)
    batch, state = enumerated(double([0.0, 0.0]), double([0.5, 0.5]).log(), double([1.0, 0.0])), {}
    state = objective.init_state((), torch.device("cpu"))
    weights = []
    for _ in range(6):
        prepared, state = objective.prepare(batch, state)
        weights.append(prepared.columns["mdpo_weight"][0].item())
    assert weights == pytest.approx([0.1, 0.1 / 0.75, 0.2, 0.4, 0.4, 0.4])


def test_a_group_without_signal_is_left_alone_by_these_advantages() -> None:
    for name in ("dhpo", "dcpo_dynamic"):
        objective = etr.get(name)
        _, found = gradient(objective, bandit(objective, *rewards_of(4, 1, size=4), 1e-4))
        assert (found[:4] == 0).all() and (found[4:] != 0).all()
