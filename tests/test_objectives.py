"""Objectives other than the elastic ones against arithmetic that can be done by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from batches import OLD, PLAIN, bandit, gradient, region_of, rewards_of, tokens

import etr
from etr.batch import Batch

LOG = {r: math.log(r) for r in (0.5, 0.9, 1.1, 1.25, 1.3, 1.5, 2.0, 5.0, 9.0)}

ONE_TOKEN = [
    # objective, fields, r, A, per-token objective, gradient coefficient c
    ("ppo", {}, 1.1, 2.0, 2.2, 2.2),  # inside: r·A = 1.1·2, and c = r·A
    ("ppo", {}, 1.5, 2.0, 2.4, 0.0),  # above and A > 0: clip(r)·A = 1.2·2, no gradient
    ("ppo", {}, 0.5, 2.0, 1.0, 1.0),  # below but A > 0: min(0.5·2, 0.8·2) = 1, the gradient stays
    ("ppo", {}, 0.5, -1.0, -0.8, 0.0),  # below and A < 0: min(−0.5, −0.8) = −0.8, no gradient
    ("ppo", {}, 1.5, -1.0, -1.5, -1.5),  # above but A < 0: min(−1.5, −1.2) = −1.5, the gradient stays
    ("ppo", {"eps_low": 0.6}, 0.5, -1.0, -0.5, -0.5),  # 0.5 lies inside [0.4, 1.2]
    ("ppo", {"eps_high": 0.6}, 1.5, 2.0, 3.0, 3.0),  # 1.5 lies inside [0.8, 1.6]
    ("ppo", {"dual_clip": 3.0}, 5.0, -1.0, -3.0, 0.0),  # max(min(−5, −1.2), 3·−1) = −3, no gradient
    ("ppo", {"dual_clip": 3.0}, 2.0, -1.0, -2.0, -2.0),  # max(−2, −3) = −2: not yet bounded
    ("ppo", {"dual_clip": 3.0}, 5.0, 1.0, 1.2, 0.0),  # the dual clip leaves A > 0 alone
    ("grpo", {}, 1.25, 1.0, 1.2, 0.0),
    ("dapo", {}, 1.25, 1.0, 1.25, 1.25),  # clip-higher: 1.25 lies inside [0.8, 1.28]
    ("dapo", {}, 1.3, 1.0, 1.28, 0.0),
    ("cispo", {}, 1.5, 2.0, 1.5 * 2.0 * (OLD + LOG[1.5]), 3.0),  # weight r = 1.5; c = weight·A
    ("cispo", {}, 9.0, 2.0, 5.0 * 2.0 * (OLD + LOG[9.0]), 10.0),  # weight capped at 1 + 4
    ("cispo", {"eps_low": 0.2}, 0.5, -1.0, 0.8 * -1.0 * (OLD + LOG[0.5]), -0.8),  # weight raised to 1 − 0.2
    ("reinforce", {}, 9.0, 2.0, 2.0 * (OLD + LOG[9.0]), 2.0),  # no ratio: c = A wherever the policy is
    ("gspo", {}, 1.1, 1.0, 1.0004, 0.0),  # far outside 1 + 4e-4
    ("gspo", {}, 0.9, -1.0, -0.9997, 0.0),  # far outside 1 − 3e-4
    ("gspo", {}, 1.1, -1.0, -1.1, -1.1),
]


@pytest.mark.parametrize(("name", "fields", "ratio", "advantage", "value", "coefficient"), ONE_TOKEN)
def test_one_token(
    name: str, fields: dict[str, object], ratio: float, advantage: float, value: float, coefficient: float
) -> None:
    objective, batch = etr.get(name, **fields), tokens([[LOG[ratio]]], [advantage])
    out = etr.policy_loss(objective, batch)
    assert out.per_token.item() == pytest.approx(value, rel=1e-12)
    assert out.loss.item() == pytest.approx(-value, rel=1e-12)  # one token: nothing to average
    assert out.log_ratio.exp().item() == pytest.approx(ratio, rel=1e-12)
    assert etr.gradient_coefficient(objective, batch).item() == pytest.approx(coefficient, rel=1e-12)


DEFAULT_REGIONS = {
    "ppo": (0.8, 1.2),
    "grpo": (0.8, 1.2),
    "dr_grpo": (0.8, 1.2),
    "dapo": (0.8, 1.28),
    "gspo": (1 - 3e-4, 1 + 4e-4),
    "cispo": (0.0, 5.0),
    "reinforce": (0.0, math.inf),
}


@pytest.mark.parametrize("name", DEFAULT_REGIONS)
def test_default_regions_are_the_papers(name: str) -> None:
    region = region_of(etr.get(name), tokens([[0.1, 0.2], [0.3]], [1.0, -1.0]))
    low, high = DEFAULT_REGIONS[name]
    assert region.low.unique().tolist() == pytest.approx([low], rel=1e-12)
    assert region.high.unique().tolist() == pytest.approx([high], rel=1e-12)


RAGGED = [[0.05, -0.3, 0.5], [0.4], [-0.1, -0.6]]  # lengths 3, 1, 2
ADVANTAGES = [1.0, -2.0, 0.5]


def clipped_values(eps_low: float, eps_high: float) -> list[list[float]]:
    """min(r·A, clip(r)·A) of the tokens above, in plain Python."""
    return [
        [min(math.exp(x) * a, min(max(math.exp(x), 1 - eps_low), 1 + eps_high) * a) for x in row]
        for row, a in zip(RAGGED, ADVANTAGES, strict=True)
    ]


def test_normalisers() -> None:
    """The same per-token values, averaged as each paper does; B counts the responses that have a token."""
    rows = clipped_values(0.2, 0.2)
    total = sum(map(sum, rows))
    want = {
        "ppo": total / 6,  # six tokens
        "grpo": sum(sum(row) / len(row) for row in rows) / 3,  # every response first over its own tokens
        "dr_grpo": total / (3 * 3),  # B·L, L the padded length
    }
    empty = tokens([*RAGGED, []], [*ADVANTAGES, 7.0])  # a fourth response of which nothing is kept
    for name, value in want.items():
        assert etr.policy_loss(etr.get(name), tokens(RAGGED, ADVANTAGES)).loss.item() == pytest.approx(-value)
        assert etr.policy_loss(etr.get(name), empty).loss.item() == pytest.approx(-value)
    dapo = sum(map(sum, clipped_values(0.2, 0.28))) / 6
    assert etr.policy_loss(etr.get("dapo"), tokens(RAGGED, ADVANTAGES)).loss.item() == pytest.approx(-dapo)


def test_dr_grpo_divides_by_a_constant_length_and_centres_only() -> None:
    total = sum(map(sum, clipped_values(0.2, 0.2)))
    fixed = etr.policy_loss(etr.get("dr_grpo", length=3000), tokens(RAGGED, ADVANTAGES)).loss.item()
    assert fixed == pytest.approx(-total / (3 * 3000))
    advantages = etr.get("dr_grpo").advantage(*rewards_of(1, size=4))
    assert advantages.tolist() == [0.75, -0.25, -0.25, -0.25]  # R − 1/4, not divided by the std


def test_cispo_gradient_has_no_dead_token() -> None:
    """∂loss/∂log π = −clip(r)·A/N everywhere: the derivative of sg[w]·A·log π, averaged over all N tokens."""
    _, found = gradient(etr.get("cispo", eps_low=0.2, eps_high=0.3), tokens(RAGGED, ADVANTAGES))
    want = [
        [-min(max(math.exp(x), 0.8), 1.3) * a / 6 for x in row] + [0.0] * (3 - len(row))
        for row, a in zip(RAGGED, ADVANTAGES, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))


def test_gspo_gradient_is_shared_by_the_tokens_of_a_response() -> None:
    """With s_i = exp(mean log r): ∂loss/∂log π_{i,t} = −s_i·A_i/(B·T_i) inside the region, 0 beyond it."""
    _, found = gradient(etr.get("gspo", eps_low=0.2, eps_high=0.2), tokens(RAGGED, ADVANTAGES))
    # mean log r = 0.083 -> s = 1.087 inside; 0.4 -> 1.49 above, but A < 0; −0.35 -> 0.70 below, but A > 0
    means = [sum(row) / len(row) for row in RAGGED]
    want = [
        [-math.exp(m) * a / (3 * len(row))] * len(row) + [0.0] * (3 - len(row))
        for m, row, a in zip(means, RAGGED, ADVANTAGES, strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))
    _, narrow = gradient(etr.get("gspo"), tokens([[0.01, 0.02], [-0.03]], [1.0, -1.0]))
    assert narrow[0].tolist() == [0.0, 0.0] and narrow[1, 0] == 0.0  # both beyond the bound that A pushes towards


def test_gspo_uses_the_geometric_mean_of_the_ratios() -> None:
    batch = tokens([[math.log(4.0), 0.0], [0.0]], [1.0, 1.0])
    ratio = etr.policy_loss(etr.get("gspo"), batch).log_ratio.exp()
    assert ratio[0].tolist() == pytest.approx([2.0, 2.0])  # √(4·1)


def with_reference(objective: etr.Objective, gap: list[list[float]]) -> tuple[Batch, torch.Tensor]:
    """An on-policy batch without signal whose log π − log π_ref is `gap`: only the penalty is left."""
    d = tokens(gap, [0.0] * len(gap))
    batch = tokens([[0.0] * len(row) for row in gap], [0.0] * len(gap), ref_log_probs=OLD - (d.log_probs - OLD))
    return batch, gradient(objective, batch)[1]


def test_grpo_kl_term() -> None:
    """β·mean_i mean_t (e^{−d} + d − 1), with gradient β(1 − e^{−d})/(B·T_i); d = log π − log π_ref."""
    gap, beta = [[0.5, -1.0], [2.0]], 0.04
    batch, found = with_reference(etr.get("grpo", beta=beta), gap)
    k3 = [[math.exp(-d) + d - 1 for d in row] for row in gap]
    assert etr.policy_loss(etr.get("grpo", beta=beta), batch).loss.item() == pytest.approx(
        beta * ((k3[0][0] + k3[0][1]) / 2 + k3[1][0]) / 2
    )
    want = [[beta * (1 - math.exp(-d)) / (2 * len(row)) for d in row] + [0.0] * (2 - len(row)) for row in gap]
    torch.testing.assert_close(found, torch.tensor(want, dtype=torch.float64))
    assert etr.policy_loss(etr.get("grpo"), batch).loss.item() == 0.0  # β = 0: no penalty, though π_ref is there


def test_the_penalty_is_aggregated_as_the_objective_is() -> None:
    gap = [[0.5, -1.0], [2.0]]
    batch, _ = with_reference(etr.get("dapo", beta=1.0), gap)
    k3 = [math.exp(-d) + d - 1 for row in gap for d in row]
    assert etr.policy_loss(etr.get("dapo", beta=1.0), batch).loss.item() == pytest.approx(sum(k3) / 3)


@pytest.mark.parametrize("name", PLAIN)
def test_scope_says_which_tokens_a_token_depends_on(name: str) -> None:
    """Moving one token's log-prob changes that token, and others of its response only with scope "row"."""
    objective = etr.get(name)
    batch = tokens([[1e-5, 2e-5, 1e-5], [-3e-5, -2e-5, -1e-5]], [1.0, -1.0])
    batch = dataclasses.replace(batch, group=etr.GroupStats(*torch.tensor([[0.5] * 2, [0.25] * 2, [2.0] * 2])))
    before = etr.policy_loss(objective, batch).per_token
    others = 0  # changed tokens beside the moved one; some methods treat only one sign of A by rows
    for row in (0, 1):
        moved = batch.log_probs.clone()
        moved[row, 1] += 1e-5
        changed = etr.policy_loss(objective, dataclasses.replace(batch, log_probs=moved)).per_token != before
        assert changed[row, 1] and not changed[1 - row].any()
        others += int(changed[row].sum()) - 1
    assert (others > 0) == (objective.scope == "row")


def test_scopes() -> None:
    rows = {name for name in PLAIN if etr.get(name).scope == "row"}
    whole = {name for name in PLAIN if etr.get(name).scope == "batch"}
    assert {"gspo"} <= rows and {"grpo_wide"} <= whole and not {"ppo", "grpo", "etr", "cispo"} & (rows | whole)
    assert etr.get("etr", normalize_budget=True).scope == "batch"


WITHOUT_SIGNAL = {  # what still moves an answer whose group has no signal
    "agpo_adaptive": "its advantage is +1 or -1 there",
    "dro": "a spring to the old policy",
    "r2vpo": "a penalty on the ratio's variance",
    "trpo": "a KL penalty",
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_group_without_signal_has_no_gradient(name: str) -> None:
    """Also off-policy and whatever its region; the other group of the batch still learns."""
    objective = etr.get(name)
    rewards, ids = rewards_of(4, 1, size=4)
    _, found = gradient(objective, bandit(objective, rewards, ids, 1e-4))
    assert (found[:4] == 0).all() == (name not in WITHOUT_SIGNAL)
    assert (found[4:] != 0).all()


@pytest.mark.parametrize("name", PLAIN)
def test_the_first_update_does_not_depend_on_the_region(name: str) -> None:
    """On-policy r = 1 lies inside every region: c = A, the same bits for a narrow and a wide one."""
    fields = set(etr.get(name).__dataclass_fields__)
    narrow, wide = ({"eps_low": eps, "eps_high": eps, "eps_min": 0.0, "eps_max": 1.0}.items() for eps in (0.01, 0.9))
    losses = []
    for setting in (narrow, wide):
        objective = etr.get(name, **{k: v for k, v in setting if k in fields})
        losses.append(gradient(objective, bandit(objective, *rewards_of(1, 2, size=4))))
    assert torch.equal(losses[0][0], losses[1][0])
    assert torch.equal(losses[0][1], losses[1][1])
