"""KL estimators: what they estimate on average, how well, and what they do as a loss."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from batches import tokens
from torch import Tensor

import etr
from etr.batch import Batch
from etr.regularizers import kl, kl_policy_to_ref

Kind = Literal["k1", "k2", "k3"]
KINDS: tuple[Kind, ...] = ("k1", "k2", "k3")
SEEDS = range(5)


def policies(seed: int, gap: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits of a policy over 6 tokens and of a reference whose logits differ by `gap` standard normals."""
    rng = torch.Generator().manual_seed(seed)
    policy, shift = torch.randn(2, 6, generator=rng, dtype=torch.float64)
    return policy, policy + gap * shift


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of two categorical distributions given as logits."""
    return (p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum()


def expected(kind: Kind, policy: Tensor, ref: Tensor) -> Tensor:
    """E over tokens sampled by the policy; the sampling distribution is not differentiated."""
    values = kl_policy_to_ref(policy.log_softmax(-1), ref.log_softmax(-1), kind)
    return (policy.detach().softmax(-1) * values).sum()  # tokens are data


@pytest.mark.parametrize("seed", SEEDS)
def test_k1_and_k3_estimate_kl_of_the_policy_to_the_reference(seed: int) -> None:
    policy, ref = policies(seed)
    forward, reverse = divergence(policy, ref).item(), divergence(ref, policy).item()
    for kind in ("k1", "k3"):
        found = expected(kind, policy, ref).item()
        assert found == pytest.approx(forward, rel=1e-12)
        assert abs(found - reverse) > 0.05 * reverse, "these policies cannot tell the two directions apart"


@pytest.mark.parametrize("seed", SEEDS)
def test_k2_is_biased_and_by_how_much(seed: int) -> None:
    """With d = log π − log π_ref: KL = E[d] and 1 = E[e^{−d}], so E[d²/2] − KL = E[d²/2 + 1 − d − e^{−d}] ≈ E[d³]/6."""
    policy, ref = policies(seed)
    d, p = policy.log_softmax(-1) - ref.log_softmax(-1), policy.softmax(-1)
    bias = (expected("k2", policy, ref) - divergence(policy, ref)).item()
    assert bias == pytest.approx((p * (d**2 / 2 + 1 - d - (-d).exp())).sum().item(), rel=1e-9)
    assert abs(bias) > 1e-3
    near, ref = policies(seed, gap=1e-3)
    third = (near.softmax(-1) * (near.log_softmax(-1) - ref.log_softmax(-1)) ** 3).sum().item() / 6
    assert (expected("k2", near, ref) - divergence(near, ref)).item() == pytest.approx(third, rel=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_k3_is_never_negative_and_k1_is(seed: int) -> None:
    policy, ref = (logits.log_softmax(-1) for logits in policies(seed))
    assert (kl_policy_to_ref(policy, ref, "k3") >= 0).all()
    assert (kl_policy_to_ref(policy, ref, "k1") < 0).any()
    assert kl is kl_policy_to_ref and torch.equal(kl(policy, ref), kl_policy_to_ref(policy, ref, "k3"))


@pytest.mark.parametrize("seed", SEEDS)
def test_gradients_as_a_loss(seed: int) -> None:
    """On-policy: k1 pushes nowhere on average, k2 follows KL(π ‖ π_ref), k3 follows KL(π_ref ‖ π)."""
    policy, ref = policies(seed)
    policy.requires_grad_()

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, policy)[0]

    forward, reverse = slope(divergence(policy, ref)), slope(divergence(ref, policy))
    found = {kind: slope(expected(kind, policy, ref)) for kind in KINDS}
    torch.testing.assert_close(found["k1"], torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(found["k2"], forward)
    torch.testing.assert_close(found["k3"], reverse)
    assert (forward - reverse).norm() > 0.05 * reverse.norm()


def test_the_penalty_of_grpo_is_kl_of_the_policy_to_the_reference() -> None:
    """A uniform policy, every token sampled exactly once: the batch mean is the expectation."""
    policy, ref = torch.zeros(6, dtype=torch.float64), policies(0)[1]
    log_probs = policy.log_softmax(-1).unsqueeze(-1)
    batch = Batch(
        log_probs,
        log_probs,
        torch.ones(6, 1, dtype=torch.bool),
        torch.zeros(6, dtype=torch.float64),
        ref_log_probs=ref.log_softmax(-1).unsqueeze(-1),
    )
    loss = etr.policy_loss(etr.get("grpo", beta=0.5), batch).loss.item()
    assert loss == pytest.approx(0.5 * divergence(policy, ref).item(), rel=1e-12)


def test_extreme_gaps_stay_finite() -> None:
    """|d| counts as at most 20, so that one token cannot make the loss infinite."""
    far = torch.tensor([-90.0, 0.0, 90.0])
    found = kl_policy_to_ref(far, torch.zeros(3), "k3").tolist()
    assert found == pytest.approx([math.exp(20) - 21, 0.0, math.exp(-20) + 19], rel=1e-6)
    batch = tokens([[0.0]], [0.0], ref_log_probs=torch.full((1, 1), 88.0, dtype=torch.float64))
    assert math.isfinite(etr.policy_loss(etr.get("grpo", beta=1.0), batch).loss.item())


GAUSSIANS = [  # shift of the reference, bias/KL and std/KL of k1, k2, k3
    (0.1, (0.0, 0.002, 0.0), (20.0, 1.42, 1.42)),
    (1.0, (0.0, 0.25, 0.0), (2.0, 1.73, 1.70)),
]


@pytest.mark.parametrize(("shift", "biases", "spreads"), GAUSSIANS)
def test_bias_and_spread_for_two_gaussians(shift: float, biases: tuple[float, ...], spreads: tuple[float, ...]) -> None:
    """π = N(0, 1), π_ref = N(shift, 1), KL = shift²/2, by quadrature: the numbers of Schulman's note."""
    x, true = torch.linspace(-12, 12, 48_001, dtype=torch.float64), shift**2 / 2
    weight = torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * (x[1] - x[0])
    for kind, bias, spread in zip(KINDS, biases, spreads, strict=True):
        value = kl_policy_to_ref(-(x**2) / 2, -((x - shift) ** 2) / 2, kind)
        mean = (weight * value).sum()
        std = (weight * (value - mean) ** 2).sum().sqrt()
        assert mean.item() / true - 1 == pytest.approx(bias, abs=6e-4)
        assert std.item() / true == pytest.approx(spread, abs=6e-3)
