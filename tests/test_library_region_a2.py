"""Trust-region methods, first part: intervals from divergences (BandPO, DPPO) and from a search (BAPO)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from batches import OLD, region_of, tokens

import etr
from etr import divergences
from etr.batch import Batch
from etr.objectives.bapo import BAPO

# Divergence balls -----------------------------------------------------------------------------------------------


def g(kind: str, p: float, r: float) -> float:
    """p·f(r) + (1−p)·f((1−rp)/(1−p)): the f-divergence of two buckets as BandPO defines it."""

    def f(u: float) -> float:
        if kind == "kl":
            return u - 1 - math.log(u) if u > 0 else math.inf
        return abs(u - 1) / 2 if kind == "tv" else (u - 1) ** 2

    return p * f(r) + (1 - p) * f((1 - r * p) / (1 - p))


def root(kind: str, p: float, delta: float, inside: float, outside: float) -> float:
    """Where g crosses delta between a point of the ball and one beyond it; the far end if g stays below delta."""
    if g(kind, p, outside) <= delta:
        return outside
    for _ in range(200):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if g(kind, p, middle) > delta else (middle, outside)
    return inside


@pytest.mark.parametrize("delta", [0.05, 0.3])
@pytest.mark.parametrize("p", [1e-4, 0.01, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", divergences.KINDS)
def test_balls_against_a_plain_bisection(kind: str, p: float, delta: float) -> None:
    low, high = divergences.ball(torch.tensor([math.log(p)], dtype=torch.float64), delta, kind)
    assert low.item() == pytest.approx(root(kind, p, delta, 1.0, 0.0), rel=1e-6, abs=1e-9)
    assert high.item() == pytest.approx(root(kind, p, delta, 1.0, (1 - 1e-15) / p), rel=1e-6)


def test_reference_values_of_the_kl_band() -> None:
    """δ = 0.05, printed to three digits."""
    want = {0.01: (0.002, 7.81), 0.1: (0.313, 2.201), 0.5: (0.692, 1.308), 0.9: (0.867, 1.076)}
    chances = torch.tensor(list(want), dtype=torch.float64)
    low, high = divergences.ball(chances.log(), 0.05, "kl")
    for i, (a, b) in enumerate(want.values()):
        assert low[i].item() == pytest.approx(a, abs=5.01e-4) and high[i].item() == pytest.approx(b, abs=5.01e-4)


def test_limits_of_the_balls() -> None:
    """p → 1: KL gives [e^−δ, 1]; δ = 0: nothing may move; p → 0: any ratio down, a huge one up; all finite."""
    certain, rare = torch.zeros(1, dtype=torch.float64), torch.tensor([-700.0], dtype=torch.float64)
    low, high = divergences.ball(certain, 0.05, "kl")
    assert low.item() == pytest.approx(math.exp(-0.05), rel=1e-12) and high.item() == 1.0
    for kind in divergences.KINDS:
        low, high = divergences.ball(rare, 0.05, kind)
        assert 0 <= low.item() < 1e-12 and 1e50 < high.item() < math.inf
        low, high = divergences.ball(torch.tensor([-1.0]), 0.0, kind)
        assert low.item() == pytest.approx(1.0, abs=1e-7) and high.item() == pytest.approx(1.0, abs=1e-7)
    _, free = divergences.ball(torch.tensor([math.log(0.9)]), 0.5, "tv", capped=False)
    assert free.item() == pytest.approx(1 + 0.5 / 0.9)  # beyond 1/p: no ratio gets there, and no bound stands there


def test_two_buckets_are_a_bernoulli_and_many_are_a_table() -> None:
    p, r = torch.tensor([0.3, 0.6], dtype=torch.float64), torch.tensor([1.4, 0.5], dtype=torch.float64)
    a, b = (torch.distributions.Bernoulli(x) for x in (p, p * r))
    torch.testing.assert_close(divergences.binary(p.log(), r.log(), "kl"), torch.distributions.kl_divergence(a, b))
    torch.testing.assert_close(divergences.binary(p.log(), r.log(), "tv"), (p * (r - 1)).abs())
    chi2 = (p * r - p) ** 2 * (1 / p + 1 / (1 - p))  # Σ (q − p)²/p over both buckets
    torch.testing.assert_close(divergences.binary(p.log(), r.log(), "chi2"), chi2)
    # (0.5, 0.3, rest 0.2) to (0.2, 0.3, rest 0.5): TV = 0.3; KL = 0.5·log 2.5 + 0.2·log 0.4
    old, new = (torch.tensor(x, dtype=torch.float64).log() for x in ([0.5, 0.3], [0.2, 0.3]))
    assert divergences.bucketed(old, new, "tv").item() == pytest.approx(0.3)
    assert divergences.bucketed(old, new, "kl").item() == pytest.approx(0.5 * math.log(2.5) + 0.2 * math.log(0.4))
    whole = torch.tensor([0.25, 0.75], dtype=torch.float64).log()
    assert divergences.bucketed(whole, whole.flip(-1), "kl").item() == pytest.approx(0.5 * math.log(3), rel=1e-9)


def mixed(chances: list[float], shift: list[float], advantages: list[float], **more: Any) -> Batch:
    """One token per response, of given old probability and log-ratio."""
    old = torch.tensor(chances, dtype=torch.float64).log()[:, None]
    now = old + torch.tensor(shift, dtype=torch.float64)[:, None]
    mask = torch.ones_like(old, dtype=torch.bool)
    return Batch(now, old, mask, torch.tensor(advantages, dtype=torch.float64), **more)


def test_bandpo_clips_each_token_at_its_own_bounds() -> None:
    """Likely tokens are held (0.9 → 1.076), rare ones may move (0.01 → 7.81); A < 0 likewise below."""
    batch = mixed([0.9, 0.01, 0.01, 0.9], [math.log(1.1), math.log(7.0), math.log(9.0), math.log(0.85)], [1, 1, 1, -1])
    out, c = etr.policy_loss(etr.get("bandpo"), batch), etr.gradient_coefficient(etr.get("bandpo"), batch)
    high = {p: root("kl", p, 0.05, 1.0, 1 / p - 1e-12) for p in (0.9, 0.01)}
    low = root("kl", 0.9, 0.05, 1.0, 0.0)
    want = torch.tensor([high[0.9], 7.0, high[0.01], -low], dtype=torch.float64)
    torch.testing.assert_close(out.per_token.squeeze(-1), want, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(c.squeeze(-1), torch.tensor([0.0, 7.0, 0.0, 0.0], dtype=torch.float64))


def test_bandpo_regions() -> None:
    """Closed forms 1 ∓ δ/p and 1 ∓ √(δ(1−p)/p); never above 100 or 1/p, never below 0; relaxed: not inside ε."""
    batch = mixed([0.5, 1e-6, 0.99], [0.0] * 3, [1.0] * 3)
    tv = region_of(etr.get("bandpo", kind="tv"), batch)
    assert tv.low.flatten().tolist() == pytest.approx([0.9, 0.0, 1 - 0.05 / 0.99])
    assert tv.high.flatten().tolist() == pytest.approx([1.1, 100.0, 1 / 0.99])
    chi2 = region_of(etr.get("bandpo", kind="chi2"), batch)
    wide, narrow = math.sqrt(0.05), math.sqrt(0.05 / 99)
    assert chi2.low.flatten().tolist() == pytest.approx([1 - wide, 0.0, 1 - narrow])
    assert chi2.high.flatten().tolist() == pytest.approx([1 + wide, 100.0, 1 / 0.99])
    relaxed = region_of(etr.get("bandpo", kind="tv", relax=True), batch)
    assert relaxed.low.flatten().tolist() == pytest.approx([0.8, 0.0, 0.8])
    assert relaxed.high.flatten().tolist() == pytest.approx([1.2, 100.0, 1.2])


# DPPO -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dppo_tv", "dppo_kl"])
def test_the_binary_mask_is_the_papers_inequality(name: str) -> None:
    """Random tokens: M = 0 exactly where the divergence, written out, is above δ and the move is A's way."""
    rng = torch.Generator().manual_seed(0)
    p = torch.rand(400, generator=rng, dtype=torch.float64)
    q = torch.rand(400, generator=rng, dtype=torch.float64)
    a = torch.randn(400, generator=rng, dtype=torch.float64)
    objective = etr.get(name, anchor="old", delta_low=0.02, delta_high=0.1)
    c = etr.gradient_coefficient(objective, mixed(p.tolist(), (q / p).log().tolist(), a.tolist())).squeeze(-1)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    d = (q - p).abs() if name == "dppo_tv" else kl
    dropped = torch.where(a > 0, (d > 0.1) & (q > p), (d > 0.02) & (q < p))
    assert 0.2 < dropped.double().mean() < 0.8
    torch.testing.assert_close(c, torch.where(dropped, 0.0, a * (q / p).clamp(max=20.0)))


def test_dppo_measures_from_its_anchor() -> None:
    """The engine's log-prob is 0.2 below π_old's: on-policy r = e^0.2 to the engine, and 1 to the old policy."""
    batch = tokens([[0.0]], [1.0], rollout_log_probs=torch.tensor([[OLD - 0.2]], dtype=torch.float64))
    assert etr.gradient_coefficient(etr.get("dppo_tv"), batch).item() == pytest.approx(math.exp(0.2))
    assert etr.gradient_coefficient(etr.get("dppo_tv", anchor="old"), batch).item() == 1.0
    strict = etr.get("dppo_tv", delta_high=0.02)  # π − μ = e^−2 − e^−2.2 = 0.0245: dropped before it has moved
    assert etr.gradient_coefficient(strict, batch).item() == 0.0
    assert etr.get("dppo_tv", anchor="old").needs == frozenset()
    assert etr.get("dppo_tv", kind="topk").needs == {"rollout_log_probs", "top_log_probs"}


@pytest.mark.parametrize(
    ("name", "distance"), [("dppo_tv", 0.3), ("dppo_kl", 0.5 * math.log(2.5) + 0.2 * math.log(0.4))]
)
def test_the_topk_mask_sees_the_other_tokens(name: str, distance: float) -> None:
    """Old (0.5, 0.3, rest 0.2), new (0.2, 0.3, rest 0.5): the token that stayed at 0.3·1.01 is judged by all."""
    old, new = (torch.tensor(x, dtype=torch.float64).log().expand(2, 1, 2) for x in ([0.5, 0.3], [0.2, 0.3]))
    for delta, kept in ((distance + 1e-6, 1.01), (distance - 1e-6, 0.0)):
        objective = etr.get(name, kind="topk", anchor="old", delta_low=delta, delta_high=delta)
        before = mixed([0.3, 0.3], [0.0, 0.0], [1.0, -1.0], top_log_probs=old)
        batch, _ = objective.prepare(before, {})
        batch = dataclasses.replace(batch, log_probs=batch.log_probs + math.log(1.01), top_log_probs=new)
        c = etr.gradient_coefficient(objective, batch)
        torch.testing.assert_close(
            c.flatten(), torch.tensor([kept, -1.01], dtype=torch.float64)
        )  # A < 0 moves up: kept


# BAPO -----------------------------------------------------------------------------------------------------------


def literal_bapo(ratios: list[float], advantages: list[float], target: float) -> tuple[float, float]:
    """The search in plain Python: absolute bounds from (0.6, 1.2), steps 0.05, ends 0.9 and 3.0."""
    low, high = 0.6, 1.2

    def enough() -> bool:
        pairs = list(zip(ratios, advantages, strict=True))
        p = sum(min(r, high) * a for r, a in pairs if a > 0)
        q = sum(max(r, low) * -a for r, a in pairs if a < 0)
        return p >= target * q - 1e-9

    while not enough() and low < 0.9 - 1e-9:
        low += 0.05
    while not enough() and high < 3.0 - 1e-9:
        high += 0.05
    return low, high


@pytest.mark.parametrize("target", [0.5, 1.0, 2.1, 2.2, 5.0])
def test_bapo_searches_as_the_loop_does(target: float) -> None:
    ratios, advantages = [0.3, 0.9, 1.5, 2.6, 0.5, 1.1], [1.0, 1.0, 1.0, 1.0, -2.0, -0.5]
    batch = mixed([0.1] * 6, [math.log(r) for r in ratios], advantages)
    region = region_of(etr.get("bapo", target=target), batch)
    low, high = literal_bapo(ratios, advantages, target)
    assert region.low.unique().tolist() == pytest.approx([low])
    assert region.high.unique().tolist() == pytest.approx([high])


def test_the_cases_of_the_search_differ() -> None:
    ratios, advantages = [0.3, 0.9, 1.5, 2.6, 0.5, 1.1], [1.0, 1.0, 1.0, 1.0, -2.0, -0.5]
    found = [literal_bapo(ratios, advantages, target) for target in (0.5, 2.1, 2.2, 5.0)]
    assert found[0] == (0.6, 1.2) and len(set(found)) >= 3
    assert found[-1][0] == pytest.approx(0.9) and found[-1][1] == pytest.approx(3.0)


def test_bapo_by_hand_and_by_gradient() -> None:
    """One right token at r = 1.5 (A = 1), one wrong at r = 0.7 (A = −2), target ½: P ≥ Q/2.

    value: P = min(1.5, c_high), Q = 2·max(0.7, c_low). At (0.6, 1.2): 1.2 ≥ 0.7, so nothing moves.
    gradient: at c_high = 1.2 the right token counts nothing: P = 0 < 0.7. c_low = 0.75 drops the wrong one: Q = 0.
    """
    batch = mixed([0.1, 0.1], [math.log(1.5), math.log(0.7)], [1.0, -2.0])
    value = region_of(etr.get("bapo", target=0.5), batch)
    assert [value.low[0].item(), value.high[0].item()] == pytest.approx([0.6, 1.2])
    drop = region_of(etr.get("bapo", target=0.5, count="gradient"), batch)
    assert [drop.low[0].item(), drop.high[0].item()] == pytest.approx([0.75, 1.2])


def test_a_higher_lower_bound_lowers_the_share_in_value_and_raises_it_in_gradient() -> None:
    """Why `count` exists: where A < 0 and r < c_low, max(r, c_low)·|A| grows with c_low, and the gradient vanishes."""
    batch = mixed([0.1, 0.1], [0.0, math.log(0.5)], [1.0, -1.0])
    ratio = (batch.log_probs - batch.old_log_probs).exp()
    for count, held in (("value", [True, False]), ("gradient", [True, True])):
        objective = etr.get("bapo", count=count, target=1.9 if count == "value" else 1.0)
        assert isinstance(objective, BAPO)
        bounds = [etr.regions.fixed(eps, 0.2, ratio) for eps in (0.5, 0.1)]  # c_low = 0.5 and 0.9; Q = 0.5 and 0.9 or 0
        assert [bool(objective.balanced(batch, ratio, b).item()) for b in bounds] == held


def test_bapo_keeps_its_first_bounds_before_any_move() -> None:
    """r = 1 and centred advantages: P = Q up to rounding, which must not start the search."""
    rng = torch.Generator().manual_seed(0)
    advantages = torch.randn(7, generator=rng, dtype=torch.float64)
    batch = mixed([0.1] * 7, [0.0] * 7, (advantages - advantages.mean()).tolist())
    region = region_of(etr.get("bapo"), batch)
    assert region.low.unique().item() == pytest.approx(0.6) and region.high.unique().item() == pytest.approx(1.2)
