"""Regularizers with targets of their own, and distribution matching, by hand and against enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch
from softmax_batches import HALF, LN2, SAMPLES, columns_of, loss_and_slope, prepared, softmax_batch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.objective import Objective

THIRD = torch.full((3,), 1 / 3, dtype=torch.float64)  # the reference of these batches


def gradient_of(value: Any, logits: Tensor) -> Tensor:
    """∂value(logits)/∂logits."""
    leaf = logits.clone().requires_grad_()  # a fresh leaf to read the gradient from
    return torch.autograd.grad(value(leaf), leaf)[0]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


# lp_reg -------------------------------------------------------------------------------------------------------------

SPARSE = torch.tensor(
    [0.9, 0.09, 0.01], dtype=torch.float64
)  # κ·max = 0.018: token 2 is noise; the proxy is (10, 1)/11
PROXY = torch.tensor([10 / 11, 1 / 11, 0.0], dtype=torch.float64)
TAKEN = torch.tensor([[0], [1], [1], [2]])
SIGNS = torch.tensor([-1.0, -1.0, 1.0, -1.0], dtype=torch.float64)


def sparse(signs: Tensor = SIGNS) -> Batch:
    return softmax_batch(SPARSE.log(), TAKEN, torch.zeros(4, dtype=torch.float64), advantages=signs)


def penalty(objective: Objective, batch: Batch, logits: Tensor) -> tuple[float, Tensor]:
    """Loss and slope that the penalty alone adds."""
    ready = prepared(objective, batch)[0]
    without = dataclasses.replace(objective, protection=0.0)  # type: ignore[call-arg]
    (a, b), (c, d) = (loss_and_slope(o, ready, logits) for o in (objective, without))
    return a - c, b - d


def test_lp_reg_protects_one_token_of_four() -> None:
    """With ρ = ½ the threshold is 0.09, and below it is only noise; with ρ = 0.9 also the wrong token of 0.09.

    KL(proxy ‖ π) = ln(1/0.99) and ∂KL/∂z = π − proxy, on one of four tokens.
    """
    objective = etr.get("lp_reg", rho=0.9, protection=2.0)
    protected = prepared(objective, sparse())[0].columns["protected"].flatten().tolist()
    assert protected == [False, True, False, False]  # likely; yes; right answer; noise
    loss, slope = penalty(objective, sparse(), SPARSE.log())
    assert loss == pytest.approx(2 * math.log(1 / 0.99) / 4, rel=1e-10)
    torch.testing.assert_close(slope, 2 * (SPARSE - PROXY) / 4, rtol=1e-10, atol=1e-14)
    for rho in (0.0, 0.5):
        assert not prepared(etr.get("lp_reg", rho=rho), sparse())[0].columns["protected"].any()


def test_lp_reg_pulls_towards_the_proxy_of_the_old_policy() -> None:
    """After a move the proxy stays: ∂KL(proxy ‖ π)/∂z = π_new − proxy_old."""
    moved = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    loss, slope = penalty(etr.get("lp_reg", rho=0.9), sparse(), moved.log())
    cross = sum(p * math.log(p / q) for p, q in zip(PROXY.tolist(), moved.tolist(), strict=True) if p > 0)
    assert loss == pytest.approx(cross / 4, rel=1e-10)
    torch.testing.assert_close(slope, (moved - PROXY) / 4, rtol=1e-10, atol=1e-14)


def test_lp_reg_as_released() -> None:
    """⌈0.6·3⌉ = 2 of three wrong tokens: 0.01, which is noise, and 0.09: d = ln 0.99, k3 = 1/0.99 + ln 0.99 − 1."""
    objective = etr.get("lp_reg", rho=0.6, literal=True)
    assert prepared(objective, sparse())[0].columns["protected"].flatten().tolist() == [False, True, False, False]
    loss, slope = penalty(objective, sparse(), SPARSE.log())
    assert loss == pytest.approx((1 / 0.99 + math.log(0.99) - 1) / 4, rel=1e-9)
    onehot = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(slope, (1 - 1 / 0.99) * (onehot - SPARSE) / 4, rtol=1e-9, atol=1e-14)
    above = torch.tensor([0.8, 0.15, 0.05], dtype=torch.float64)  # 0.15 > 1/11: nothing left to protect
    assert penalty(objective, sparse(), above.log())[0] == 0.0


def test_lp_reg_region_is_the_papers() -> None:
    region = etr.policy_loss(etr.get("lp_reg"), sparse()).region
    assert region.low.unique().tolist() == [0.0] and region.high.unique().tolist() == [10.0]


# siren --------------------------------------------------------------------------------------------------------------


def peak_entropy(log_probs: np.ndarray, lengths: list[int], top_p: float, quantile: float, peaks: Any = None) -> Any:
    """E of a ragged batch and its peaks, in numpy; given peaks are kept."""
    means, found = [], []
    for i, length in enumerate(lengths):
        entropies = []
        for t in range(length):
            p = np.sort(np.exp(log_probs[i, t] - np.log(np.exp(log_probs[i, t]).sum())))[::-1]
            p = p[: int(np.searchsorted(p.cumsum(), top_p)) + 1]
            entropies.append(float(-(p / p.sum() * np.log(p / p.sum())).sum()))
        high = np.quantile(entropies, quantile)
        chosen = peaks[i] if peaks else [t for t in range(length) if entropies[t] >= high]
        found.append(chosen)
        means.append(fmean(entropies[t] for t in chosen))
    return fmean(means), found


@pytest.mark.parametrize(
    "fields",
    [{}, {"length": 7}, *({"aggregation": m} for m in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum"))],
)
def test_siren_gradient_is_that_of_the_squared_distance(fields: dict[str, Any]) -> None:
    """After a first step of other entropy: ∂c·(E − E₀)²/∂z by central differences of numpy's E, for every average."""
    objective = etr.get("siren", coefficient=0.7, **fields)
    rng = torch.Generator().manual_seed(0)
    logits, first = 2 * torch.randn(2, 4, 5, 6, generator=rng, dtype=torch.float64)
    lengths, tokens = [5, 1, 3, 2], torch.zeros(4, 5, dtype=torch.long)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    nothing = torch.zeros(4, dtype=torch.float64)
    batches = [softmax_batch(z, tokens, nothing, response_mask=mask) for z in (first, logits)]
    ready, state = prepared(objective, batches[0])
    assert (loss_and_slope(objective, ready, first)[1] == 0).all()  # E = E₀
    anchor, _ = peak_entropy(first.numpy(), lengths, 0.8, 0.8)
    assert state["anchor"].item() == pytest.approx(anchor, rel=1e-12)
    ready, state = prepared(objective, batches[1], state)
    assert state["anchor"].item() == pytest.approx(anchor, rel=1e-12)  # for the whole run
    slope = loss_and_slope(objective, ready, logits)[1]
    _, peaks = peak_entropy(logits.numpy(), lengths, 0.8, 0.8)
    for place in itertools.islice(itertools.product(range(4), range(5), range(6)), 0, None, 7):
        values = []
        for step in (1e-6, -1e-6):
            moved = logits.clone()
            moved[place] += step
            values.append(0.7 * (peak_entropy(moved.numpy(), lengths, 0.8, 0.8, peaks)[0] - anchor) ** 2)
        assert slope[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-8)
    assert slope.abs().max() > 0.01


def test_nucleus_entropy_by_hand() -> None:
    """(½, 0.3, 0.2) at p = 0.75: the first two, (⅝, ⅜); at p = 0.4 the first alone, with no entropy; at 1 all."""
    policy = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    batch = softmax_batch(policy.log(), SAMPLES.unsqueeze(-1), torch.zeros(4, dtype=torch.float64)).clean()
    two = -(0.625 * math.log(0.625) + 0.375 * math.log(0.375))
    full = -sum(p * math.log(p) for p in policy.tolist())
    for top_p, want in ((0.75, two), (0.4, 0.0), (1.0, full)):
        found = etr.get("siren", top_p=top_p).nucleus_entropy(batch)  # type: ignore[attr-defined]
        assert found.flatten().tolist() == pytest.approx([want] * 4, abs=1e-12)


# adaptive_kl --------------------------------------------------------------------------------------------------------


def test_adaptive_kl_by_hand() -> None:
    """n/horizon = 4/8. KL: 3 targets (error cut to 0.2), 1.1 (0.1), 0.5 (cut to −0.2), 1 (0)."""
    shifts = [0.3, 0.11, 0.05, 0.1]
    rewards, tokens = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 2, dtype=torch.long)
    plain = softmax_batch(HALF.log(), tokens, rewards)
    batches = [dataclasses.replace(plain, ref_log_probs=plain.old_log_probs - s) for s in shifts]
    objective = etr.get("adaptive_kl", beta=2.0, target=0.1, horizon=8.0, kl_kind="k1")
    want = [2.0, 2.0 * 1.1, 2.0 * 1.1 * 1.05, 2.0 * 1.1 * 1.05 * 0.9]
    assert columns_of(objective, batches, "kl_coefficient") == pytest.approx(want, rel=1e-12)
    ready = prepared(objective, batches[0])[0]
    assert loss_and_slope(objective, ready, HALF.log())[0] == pytest.approx(2.0 * 0.3, rel=1e-12)


def test_adaptive_kl_counts_every_response_once() -> None:
    """KL 0.3 on two tokens and 0.1 on one: mean 0.2, not 0.7/3; error 0.2/0.19 − 1, n/horizon = 2/2."""
    mask = torch.tensor([[True, True], [True, False]])
    plain = softmax_batch(HALF.log(), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2).double(), response_mask=mask)
    gap = torch.tensor([[0.3], [0.1]], dtype=torch.float64)
    batch = dataclasses.replace(plain, ref_log_probs=plain.old_log_probs - gap)
    state = prepared(etr.get("adaptive_kl", beta=1.0, target=0.19, horizon=2.0, kl_kind="k1"), batch)[1]
    assert state["beta"].item() == pytest.approx(0.2 / 0.19, rel=1e-12)


@pytest.mark.parametrize(("kind", "reverse"), [("k2", False), ("k3", True), ("k1", None)])
def test_adaptive_kl_gradients_against_enumeration(kind: str, reverse: bool | None) -> None:
    """On-policy k2 has the gradient of KL(π ‖ π_ref), k3 that of KL(π_ref ‖ π), k1 none."""
    objective = etr.get("adaptive_kl", beta=0.7, kl_kind=kind)
    batch = softmax_batch(HALF.log(), SAMPLES.unsqueeze(-1), torch.zeros(4, dtype=torch.float64))
    _, slope = loss_and_slope(objective, prepared(objective, batch)[0], HALF.log())
    if reverse is None:
        assert slope.abs().max() < 1e-12
        return

    def value(z: Tensor) -> Tensor:
        policy = z.softmax(-1)
        return 0.7 * (divergence(THIRD, policy) if reverse else divergence(policy, THIRD))

    want = gradient_of(value, HALF.log())
    torch.testing.assert_close(slope, want, rtol=1e-10, atol=1e-14)
    assert want.abs().max() > 0.05


# f_dpg, copg --------------------------------------------------------------------------------------------------------

VERDICTS = torch.tensor([0.3, 1.0, 0.0], dtype=torch.float64)  # of each answer
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {  # D_f(π ‖ p), written out
    "kl": lambda q, p: divergence(p, q),
    "reverse_kl": divergence,
    "js": lambda q, p: divergence(p, (p + q) / 2) + divergence(q, (p + q) / 2),
    "tv": lambda q, p: (q - p).abs().sum() / 2,
    "chi2": lambda q, p: (p**2 / q).sum() - 1,
    "reverse_chi2": lambda q, p: (q**2 / p).sum() - 1,
}


def answers(policy: Tensor) -> Batch:
    return softmax_batch(policy.log(), SAMPLES.unsqueeze(-1), VERDICTS[SAMPLES])


@pytest.mark.parametrize("name", DIVERGENCES)
def test_f_dpg_is_the_gradient_of_its_divergence(name: str) -> None:
    """Samples as often as π says: Z is exact, and leave-one-out only adds the factor G/(G − 1) = 4/3."""
    objective = etr.get("f_dpg", divergence=name, beta=0.5)
    _, slope = loss_and_slope(objective, prepared(objective, answers(HALF))[0], HALF.log())
    target = (VERDICTS / 0.5).softmax(-1)  # the reference is uniform
    want = gradient_of(lambda z: DIVERGENCES[name](z.softmax(-1), target), HALF.log())
    torch.testing.assert_close(slope, 4 / 3 * want, rtol=1e-10, atol=1e-13)
    assert want.abs().max() > 0.05


def test_f_dpg_normalises_by_group_or_by_batch() -> None:
    """Two prompts, R = 1 and R = 0 throughout, q = π_ref: by group t = 1; by batch t = Z/e^{R/β}, Z = (e + 1)/2."""
    rewards = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    batch = softmax_batch(THIRD.log(), torch.zeros(4, 1, dtype=torch.long), rewards)
    batch = dataclasses.replace(batch, group_ids=torch.tensor([0, 0, 1, 1]))
    log_t = {p: etr.get("f_dpg", partition=p, beta=1.0).log_density(batch) for p in ("group", "batch")}  # type: ignore[attr-defined]
    assert log_t["group"].tolist() == pytest.approx([0.0] * 4, abs=1e-12)
    z = math.log((math.e + 1) / 2)
    assert log_t["batch"].tolist() == pytest.approx([z - 1, z - 1, z, z], rel=1e-12)


def test_f_dpg_is_at_rest_at_its_target_and_finite_far_from_it() -> None:
    """p ∝ e^{R/β} with β = 0.3/ln 2, R = (0.3, 0, 0) is (½, ¼, ¼)."""
    rewards = torch.tensor([0.3, 0.3, 0.0, 0.0], dtype=torch.float64)
    batch = softmax_batch(HALF.log(), SAMPLES.unsqueeze(-1), rewards)
    for name in set(DIVERGENCES) - {"tv"}:  # its sign is that of rounding there
        objective = etr.get("f_dpg", divergence=name, beta=0.3 / LN2)
        assert prepared(objective, batch)[0].advantages.abs().max() < 1e-12
        far = etr.get("f_dpg", divergence=name, beta=1e-4)
        assert prepared(far, batch)[0].advantages.isfinite().all()


def sequences() -> Batch:
    rng = torch.Generator().manual_seed(0)
    logits, shift = torch.randn(2, 4, 3, 3, generator=rng, dtype=torch.float64)
    mask = torch.arange(3) < torch.tensor([3, 1, 2, 2])[:, None]
    batch = softmax_batch(logits, torch.zeros(4, 3, dtype=torch.long), VERDICTS[SAMPLES], response_mask=mask)
    return dataclasses.replace(batch, ref_log_probs=batch.old_log_probs + shift[..., 0])


def test_copg_is_the_pairwise_regression() -> None:
    """On-policy ∂L/∂log π(y) = −2β·c, L = ⅓·Σ_{i>j} (R_β,i − R_β,j)² by autograd; off-policy c = A − β·ℓ."""
    beta, batch = 0.4, sequences()
    objective, clean = etr.get("copg", beta=beta), batch.clean()
    leaf = clean.log_probs.clone().requires_grad_()  # a fresh leaf to read the gradient from
    assert clean.rewards is not None and clean.ref_log_probs is not None
    regularized = clean.rewards - beta * (torch.where(clean.response_mask, leaf, 0.0) - clean.ref_log_probs).sum(-1)
    pairs = [(regularized[i] - regularized[j]) ** 2 for i in range(4) for j in range(i)]
    want = torch.autograd.grad(sum(pairs[1:], pairs[0]) / 3, leaf)[0] / (-2 * beta)
    found = etr.gradient_coefficient(objective, batch)
    torch.testing.assert_close(found, want, rtol=1e-10, atol=1e-14)
    shift = torch.tensor([[0.1, -0.2, 0.4]] * 4, dtype=torch.float64)
    length = torch.where(batch.response_mask, shift, 0.0).sum(-1, keepdim=True)
    off = etr.gradient_coefficient(objective, dataclasses.replace(batch, log_probs=batch.old_log_probs + shift))
    torch.testing.assert_close(off, torch.where(batch.response_mask, want - beta * length, 0.0))


def test_copg_on_policy_climbs_the_regularized_reward_and_rests_at_its_optimum() -> None:
    """Its gradient is G/(G − 1) times that of E[R] − β·KL(π ‖ π_ref); at π ∝ π_ref·e^{R/β} every A is 0."""
    objective = etr.get("copg", beta=0.5)
    _, slope = loss_and_slope(objective, prepared(objective, answers(HALF))[0], HALF.log())

    def value(z: Tensor) -> Tensor:
        return (z.softmax(-1) * VERDICTS).sum() - 0.5 * divergence(z.softmax(-1), THIRD)

    torch.testing.assert_close(slope, -4 / 3 * gradient_of(value, HALF.log()), rtol=1e-10, atol=1e-13)
    best = answers((VERDICTS / 0.5).softmax(-1))
    assert prepared(objective, best)[0].advantages.abs().max() < 1e-12
    # f-DPG's reverse KL is the same up to the scale 1/β.
    other = prepared(etr.get("f_dpg", beta=0.5), answers(HALF))[0].advantages
    torch.testing.assert_close(0.5 * other, prepared(objective, answers(HALF))[0].advantages, rtol=1e-10, atol=1e-13)
