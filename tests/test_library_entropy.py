"""Entropy bonuses, controllers and tempered targets against arithmetic by hand and exact enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from softmax_batches import HALF, LN2, SAMPLES, columns_of, loss_and_slope, prepared, softmax_batch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import FieldError

H_HALF = 1.5 * LN2  # −½·ln ½ − 2·¼·ln ¼
NO_SIGNAL = torch.zeros(4, dtype=torch.float64)  # equal rewards: all that is left is the regularizer


def one_token(rewards: Tensor = NO_SIGNAL, **more: Any) -> Batch:
    return softmax_batch(HALF.log(), SAMPLES.unsqueeze(-1), rewards, **more)


def with_entropy(*rows: list[float], turns: list[list[int]] | None = None) -> Batch:
    """Responses without advantage, of given token entropies, padded with NaN."""
    length = max(map(len, rows))
    entropy = torch.tensor([[*row, *[math.nan] * (length - len(row))] for row in rows], dtype=torch.float64)
    flat = torch.full_like(entropy, -1.0)
    more: dict[str, Any] = {} if turns is None else {"turns": torch.tensor(turns)}
    return Batch(flat, flat, ~entropy.isnan(), torch.zeros(len(rows)).double(), entropy=entropy, **more)


def entropy_slope(name: str, batch: Batch, state: Any = None, **fields: Any) -> tuple[float, Tensor, Any]:
    """Loss, its gradient with respect to the entropy of every token, and the next state."""
    objective = etr.get(name, **fields)
    ready, state = prepared(objective, batch, state)
    assert batch.entropy is not None
    leaf = batch.entropy.clone().requires_grad_()  # a fresh leaf to read the gradient from
    current = dataclasses.replace(ready, entropy=leaf)
    loss = etr.policy_loss(objective, current, objective.denominator(batch.response_mask), check=False).loss
    return loss.item(), torch.autograd.grad(loss, leaf)[0], state


# entropy_bonus ------------------------------------------------------------------------------------------------------


def test_the_bonus_and_its_gradient_by_hand() -> None:
    """π = (½, ¼, ¼): H = 1.5·ln 2 and ∂(−c·H)/∂z = c·π·(ln π + H) = c·ln 2·(¼, −⅛, −⅛)."""
    objective = etr.get("entropy_bonus", coefficient=0.4)
    loss, slope = loss_and_slope(objective, prepared(objective, one_token())[0], HALF.log())
    assert loss == pytest.approx(-0.4 * H_HALF, rel=1e-12)
    want = 0.4 * LN2 * torch.tensor([0.25, -0.125, -0.125], dtype=torch.float64)
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("mode", "mean"),
    [
        ("token-mean", (1 + 2 + 3 + 6) / 4),
        ("seq-mean-token-mean", ((1 + 2 + 3) / 3 + 6) / 2),
        ("seq-mean-token-sum", (6 + 6) / 2),
    ],
)
def test_the_bonus_is_aggregated_as_the_objective(mode: str, mean: float) -> None:
    loss, _, _ = entropy_slope("entropy_bonus", with_entropy([1, 2, 3], [6]), aggregation=mode, coefficient=0.5)
    assert loss == pytest.approx(-0.5 * mean, rel=1e-12)


def test_the_bonus_adds_to_the_kl_penalty() -> None:
    both, kl, bonus = (
        loss_and_slope(o, prepared(o, one_token())[0], HALF.log().roll(1))
        for o in (
            etr.get("entropy_bonus", coefficient=0.3, beta=0.7),
            etr.get("grpo", beta=0.7),
            etr.get("entropy_bonus", coefficient=0.3),
        )
    )
    assert abs(kl[0]) > 0.01 and both[0] == pytest.approx(kl[0] + bonus[0], rel=1e-12)
    torch.testing.assert_close(both[1], kl[1] + bonus[1])


# adaptive_entropy ---------------------------------------------------------------------------------------------------

SAC = [0.5, 0.5 * math.exp(0.1)]  # c·exp(−step·c·(H − H*)) = 0.5·exp(2·0.5·0.1)
SAC.append(SAC[1] * math.exp(2 * SAC[1] * -0.2))
CONTROLLERS = [
    # kind, fields (H* = 0.5 always), mean entropies, the coefficient that each step uses
    ("bang-bang", {"step": 0.1, "limit": 0.15}, [0.4, 0.4, 0.6, 0.4], [0.0, 0.1, 0.0, 0.05]),  # 0.2 cut to 0.15; off
    ("integral", {"step": 1.0, "limit": 1.0, "coefficient": 0.2}, [0.4, 0.9, 0.4, 0.4], [0.2, 0.3, 0.0, 0.1]),
    ("sac", {"step": 2.0, "limit": 9.0, "coefficient": 0.5}, [0.4, 0.7, 0.5], SAC),
    ("proportional", {"limit": 1.0, "coefficient": 0.2}, [0.4, 1.0, 0.01], [0.25, 0.1, 1.0]),  # 0.2·0.5/0.4; 10 cut
]


@pytest.mark.parametrize(("kind", "fields", "entropies", "used"), CONTROLLERS)
def test_controllers_by_hand(kind: str, fields: dict[str, Any], entropies: list[float], used: list[float]) -> None:
    objective = etr.get("adaptive_entropy", controller=kind, target=0.5, **fields)
    batches = [with_entropy([h - 0.1, h + 0.1], [h]) for h in entropies]
    assert columns_of(objective, batches, "entropy_coefficient") == pytest.approx(used, abs=1e-12)


@pytest.mark.parametrize(("kind", "fields", "entropies", "used"), CONTROLLERS)
def test_the_controlled_bonus(kind: str, fields: dict[str, Any], entropies: list[float], used: list[float]) -> None:
    """∂loss/∂H_t = −c/(B·T_i)."""
    state = None
    for h, c in zip(entropies, used, strict=True):
        more = {"controller": kind, "target": 0.5, **fields}
        loss, slope, state = entropy_slope("adaptive_entropy", with_entropy([h, h], [h]), state, **more)
        assert loss == pytest.approx(-c * h, abs=1e-12)
        torch.testing.assert_close(slope, -c * torch.tensor([[0.25, 0.25], [0.5, 0.0]], dtype=torch.float64))


def test_controllers_refuse_what_cannot_move() -> None:
    for kind in ("sac", "proportional"):
        with pytest.raises(FieldError, match="coefficient is 0, from where"):
            etr.get("adaptive_entropy", controller=kind).init_state((), torch.device("cpu"))
    with pytest.raises(FieldError, match="did you mean 'bang-bang'"):
        etr.get("adaptive_entropy", controller="bangbang")


# epo ----------------------------------------------------------------------------------------------------------------

EPO = {"coefficient": 0.01, "penalty": 0.1, "smoothing": 2.0}
BETA_1 = 1 - 0.2 * (1 - math.exp(-2 / 75))  # the phase weight after one of 150 epochs: x = 1/75


@pytest.mark.parametrize("literal", [False, True])
def test_epo_by_hand(literal: bool) -> None:
    """History 1 and 2 at turns 0 and 1, bands [0.8, 1.2] and [1.6, 2.4]: 0.5 is 0.3 too low, 2.6 is 0.2 too high."""
    first = with_entropy([1.0, 2.0], [1.0], turns=[[0, 1], [0, 0]])
    loss, slope, state = entropy_slope("epo", first, literal=literal, **EPO)
    assert loss == pytest.approx(-0.01 * 1.25, rel=1e-12)  # no history yet: the bonus alone
    second = with_entropy([0.5, 2.6], [1.1], turns=[[0, 1], [0, 0]])
    loss, slope, state = entropy_slope("epo", second, state, literal=literal, **EPO)
    hinge = 0.1 * ((1 + 1) / 2 + 0) / 2 if literal else 0.1 * ((0.3 + 0.2) / 2 + 0) / 2
    assert loss == pytest.approx(-0.01 * ((0.5 + 2.6) / 2 + 1.1) / 2 + 0.01 * 2 * BETA_1 * hinge, rel=1e-12)
    pull = 0.0 if literal else 2 * BETA_1 * 0.1  # the step function has no gradient
    want = -0.01 * torch.tensor([[0.25 * (1 + pull), 0.25 * (1 - pull)], [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(slope, want, rtol=1e-12, atol=0)
    # Turn 0: the mean of epoch means 1 and (0.5 + 1.1)/2; turn 1: of 2 and 2.6.
    assert (state["total"] / state["seen"])[:2].tolist() == pytest.approx([(1 + 0.8) / 2, (2 + 2.6) / 2])


def test_epo_phase_weight() -> None:
    """1 at the start; 1 − 0.2·(1 − e^{−1}) at a quarter; 0.8 at the half; 0.8·e^{−3} at and after the end."""
    phase = etr.get("epo", epochs=100).phase  # type: ignore[attr-defined]
    found = phase(torch.tensor([0.0, 25.0, 50.0, 100.0, 500.0], dtype=torch.float64)).tolist()
    late = 0.8 * math.exp(-3)
    assert found == pytest.approx([1.0, 1 - 0.2 * (1 - math.exp(-1)), 0.8, late, late], rel=1e-12)


def test_late_turns_share_a_history() -> None:
    objective = etr.get("epo", steps=2)
    _, state = prepared(objective, with_entropy([1.0, 2.0, 4.0], turns=[[0, 1, 7]]))
    assert state["total"].tolist() == [1.0, 3.0] and state["seen"].tolist() == [1.0, 1.0]


# aepo_arbitrary, dcpo_distribution ----------------------------------------------------------------------------------


def temper(temperature: float) -> Tensor:
    powers = HALF ** (1 / temperature)
    return powers / powers.sum()


@pytest.mark.parametrize(("target", "temperature"), [(1.0, 0.8), (1.1, 1.2)])  # H = 1.04: above H₀ cold, below hot
def test_aepo_is_the_gradient_under_the_tempered_policy(target: float, temperature: float) -> None:
    """Two tokens, all 16 answers as often as π says: the added gradient is −α/T·E_{y∼π^T}[R(y)·∇log π(y)]."""
    answers = list(itertools.product(SAMPLES.tolist(), repeat=2))
    rewards = torch.tensor([float(a != b or a == 2) for a, b in answers], dtype=torch.float64)
    tokens, old = torch.tensor(answers), HALF.log().expand(2, 3)  # a state for each place
    slopes = []
    for alpha in (0.0, 0.3):
        objective = etr.get("aepo_arbitrary", alpha=alpha, target=target)
        batch = softmax_batch(old, tokens, rewards)
        slopes.append(loss_and_slope(objective, prepared(objective, batch)[0], old)[1])
    leaf, chance = old.clone().requires_grad_(), temper(temperature)
    total = torch.zeros((), dtype=torch.float64)
    for a, b in itertools.product(range(3), repeat=2):
        if a != b or a == 2:
            total = total + chance[a] * chance[b] * (leaf[0].log_softmax(-1)[a] + leaf[1].log_softmax(-1)[b])
    want = -0.3 * torch.autograd.grad(total, leaf)[0] / 2  # GRPO's mean over the answer's two tokens
    torch.testing.assert_close(slopes[1] - slopes[0], want, rtol=1e-10, atol=1e-14)
    assert want.abs().max() > 0.01


@pytest.mark.parametrize(("level", "cap"), [("token", 10.0), ("sequence", 10.0), ("sequence", 0.9)])
def test_aepo_weights_by_hand(level: str, cap: float) -> None:
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    tokens = torch.tensor([[0, 0], [1, 0], [2, 2], [0, 1]])
    objective = etr.get("aepo_arbitrary", alpha=0.5, target=9.0, level=level, max_weight=cap)
    found = prepared(objective, softmax_batch(HALF.log(), tokens, rewards))[0].advantages
    w = (temper(1.2) / HALF).tolist()
    rows = [[w[0], w[0]], [w[1], w[0]]] if level == "token" else [[w[0] ** 2] * 2, [w[1] * w[0]] * 2]
    want = [[0.5 + 0.5 * min(x, cap) for x in row] for row in rows] + [[-0.5, -0.5], [-0.5, -0.5]]
    assert found.tolist() == [pytest.approx(row, rel=1e-12) for row in want]


@pytest.mark.parametrize(
    ("target", "temperature", "gap"),
    [(0.5, 0.8, 0.1), (H_HALF + 0.03, 1.2, 0.03), (H_HALF - 0.05, 0.8, 0.05)],
)
def test_dcpo_by_hand(target: float, temperature: float, gap: float) -> None:
    """Half of the answers are right: a = gap/½, α = a/(1 + a); A' = (1 − α)·A + α·R·ρ."""
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    found = prepared(etr.get("dcpo_distribution", target=target), one_token(rewards))[0].advantages.squeeze(-1)
    alpha, rho = 2 * gap / (1 + 2 * gap), (temper(temperature) / HALF).tolist()
    want = [(1 - alpha) * a + alpha * r * rho[v] for a, r, v in ((0.5, 1, 0), (-0.5, 0, 0), (0.5, 1, 1), (-0.5, 0, 2))]
    assert found.tolist() == pytest.approx(want, rel=1e-9)


def test_dcpo_only_guides_right_answers_and_its_ratio_has_mean_one() -> None:
    all_right = torch.ones(4, dtype=torch.float64)
    shaped = prepared(etr.get("dcpo_distribution", gap_limit=9.0), one_token(all_right))[0].advantages.squeeze(-1)
    gap = H_HALF - 0.5
    assert shaped.mean().item() == pytest.approx(gap / (1 + gap), rel=1e-12)  # α·E_π[ρ] = α
    none = prepared(etr.get("dcpo_distribution"), one_token(NO_SIGNAL))[0].advantages
    assert (none == 0).all()


# earl, high_entropy_tokens, steer -----------------------------------------------------------------------------------

FORKS = ([0.1, 0.9, 0.5, 0.4], [0.8, 0.2], [0.9, 0.3, 0.6, 0.7])


def shaped(name: str, *rows: list[float], advantages: list[float], **fields: Any) -> Tensor:
    batch = dataclasses.replace(with_entropy(*rows), advantages=torch.tensor(advantages, dtype=torch.float64))
    return prepared(etr.get(name, **fields), batch)[0].advantages


def test_high_entropy_tokens_by_hand() -> None:
    """⌈0.2·10⌉ = 2 of ten tokens: the two of 0.9; each counts 10/2 times."""
    found = shaped("high_entropy_tokens", *FORKS, advantages=[1.0, -1.0, -2.0])
    assert found.tolist() == [[0.0, 5.0, 0.0, 0.0], [0.0] * 4, [-10.0, 0.0, 0.0, 0.0]]
    # ⌈0.1·10⌉ = 1, but both of 0.9 are the highest; ⌈0.25·10⌉ = 3: 10/3 each.
    assert torch.equal(shaped("high_entropy_tokens", *FORKS, advantages=[1.0, -1.0, -2.0], fraction=0.1), found)
    three = shaped("high_entropy_tokens", *FORKS, advantages=[1.0, 1.0, 1.0], fraction=0.25)
    assert three.nonzero().tolist() == [[0, 1], [1, 0], [2, 0]] and three.sum().item() == pytest.approx(10)


def test_a_share_is_rounded_up_once() -> None:
    """0.07·100 is 7.000000000000001 in double precision, and must not be rounded up to 8."""
    found = shaped("high_entropy_tokens", [i / 100 for i in range(100)], advantages=[1.0], fraction=0.07)
    assert found.nonzero()[:, 1].tolist() == list(range(93, 100))


def test_the_loss_is_the_mean_over_the_chosen_tokens() -> None:
    """Chosen: r = 1.2 with A = 1 (inside 1.28) and r = 0.5 with A = −2 (below 0.8): −(1.2 − 0.8·2)/2 = 0.2."""
    batch = dataclasses.replace(with_entropy(*FORKS), advantages=torch.tensor([1.0, -1.0, -2.0]).double())
    shift = torch.full_like(batch.log_probs, math.log(1.1))
    shift[0, 1], shift[2, 0] = math.log(1.2), math.log(0.5)
    objective = etr.get("high_entropy_tokens")
    loss = etr.policy_loss(objective, dataclasses.replace(batch, log_probs=batch.log_probs + shift)).loss
    assert loss.item() == pytest.approx(0.2, rel=1e-12)


def test_earl_by_hand() -> None:
    """0.8-quantiles by linear interpolation: 0.5 + 0.4·0.4 = 0.66; 0.2 + 0.8·0.6 = 0.68; 0.7 + 0.4·0.2 = 0.78."""
    found = shaped("earl", *FORKS, advantages=[1.0, -1.0, -2.0])
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]]
    # Over the batch: sorted 0.1 … 0.9, place 7.2 of ten, 0.8 + 0.2·(0.9 − 0.8) = 0.82.
    found = shaped("earl", *FORKS, advantages=[1.0, -1.0, -2.0], level="batch")
    assert found.tolist() == [[0.0, 1.0, 0.0, 0.0], [0.0] * 4, [-2.0, 0.0, 0.0, 0.0]]
    half = shaped("earl", *FORKS, advantages=[1.0, 1.0, 1.0], quantile=0.5)  # medians 0.45, 0.5, 0.65
    assert half.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [2, 0], [2, 3]] and (half[half > 0] == 1).all()


@pytest.mark.parametrize("weighting", ["exponential", "linear"])
def test_steer_by_hand(weighting: str) -> None:
    """p = e^{−1} everywhere: Ω = |A|·(1 − e^{−1})·|H − 1|."""
    rows, advantages = ([1.0, 1.5], [3.0]), [1.0, -2.0]
    found = shaped("steer", *rows, advantages=advantages, weighting=weighting)
    spread = 1 - math.exp(-1)
    omega = [[0.0, 0.5 * spread], [2 * 2.0 * spread, 0.0]]
    top = 4 * spread
    k = -math.log(0.8) / top
    for i, j in ((0, 0), (0, 1), (1, 0)):
        w = math.exp(-k * omega[i][j]) if weighting == "exponential" else 1.2 - omega[i][j] / top * 0.4
        assert found[i, j].item() == pytest.approx(w * advantages[i], rel=1e-12)
    assert found[1, 0].item() == pytest.approx(0.8 * -2.0, rel=1e-12)  # the largest change has the least weight
    assert found[0, 0].item() == pytest.approx(1.0 if weighting == "exponential" else 1.2, rel=1e-12)


def test_steer_is_gentle_where_nothing_changes() -> None:
    """max Ω = 0.001·(1 − e^{−1}) lies below 0.02, so even the largest change keeps nearly all its weight."""
    found = shaped("steer", [1.001], [1.0], advantages=[1.0, 1.0])
    change = 0.001 * (1 - math.exp(-1))
    assert found[0, 0].item() == pytest.approx(math.exp(math.log(0.8) / 0.02 * change), rel=1e-9)


@pytest.mark.parametrize("name", ["steer", "earl", "high_entropy_tokens", "dcpo_distribution", "aepo_arbitrary"])
def test_the_coefficient_is_ratio_times_shaped_advantage(name: str) -> None:
    """c = r·A' inside the region, the closed form of the clipped surrogate's gradient, in double precision."""
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    objective, old = etr.get(name), torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    batch = prepared(objective, softmax_batch(old, SAMPLES.unsqueeze(-1), rewards))[0]
    r = torch.tensor([[1.1], [0.9], [1.05], [0.95]], dtype=torch.float64)
    moved = dataclasses.replace(batch, log_probs=batch.old_log_probs + r.log())
    want = r * batch.token_advantages
    torch.testing.assert_close(etr.gradient_coefficient(objective, moved), want, rtol=1e-12, atol=0)
    assert want.abs().max() > 0.1
