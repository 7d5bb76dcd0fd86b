"""The four parts of the Unified Policy Gradient Estimator, read off every objective's coefficient; and soft tokens."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from batches import OLD, tokens
from torch import Tensor

import etr
from etr.laws import random_batch
from etr.objectives.grpo import GRPO
from etr.oracles import soft_grpo
from etr.unified import four_parts, reference, table

F = torch.float64
NAMES = etr.list_objectives()


@pytest.mark.parametrize("name", NAMES)
def test_the_product_is_the_coefficient(name: str) -> None:
    """Where c follows A there is one positive reference policy that gives it; where c opposes A there is none."""
    objective = etr.get(name)
    for noise in (0.3, 2.0):
        batch = random_batch(objective, runs=(2,), noise=noise)
        parts, c = four_parts(objective, batch), etr.gradient_coefficient(objective, batch)
        good = parts.defined
        torch.testing.assert_close(parts.coefficient()[good], c[good], rtol=1e-9, atol=1e-12)
        assert (parts.denominator > 0).all() and torch.isfinite(parts.denominator).all()
        assert not parts.mask[~batch.response_mask].any() and good[~batch.response_mask].all()
        opposed = (c * parts.advantage < 0) | ((c != 0) & (parts.advantage == 0))
        assert torch.equal(~good, opposed & batch.response_mask)
        if "gradient_follows_advantage" not in objective.exceptions and noise < 1:
            assert good.double().mean() > 0.5


def test_parts_by_hand() -> None:
    """r = 1.5 above 1.2: no gradient for A > 0, and r·A for A < 0; r = 1.1 inside. π = π_old·r, π_ref = π_old."""
    batch = tokens([[math.log(1.5), math.log(1.1)], [math.log(1.5)]], [2.0, -1.0])
    parts = four_parts(etr.get("grpo"), batch)
    old = math.exp(OLD)
    assert parts.mask.tolist() == [[False, True], [True, False]]
    assert parts.denominator[parts.mask].tolist() == pytest.approx([old, old])
    assert parts.advantage[parts.mask].tolist() == [2.0, -1.0]
    assert parts.likelihood[parts.mask].tolist() == pytest.approx([1.1 * old, 1.5 * old])
    assert parts.coefficient()[0].tolist() == pytest.approx([0.0, 2.2])


def test_reference_policies_of_the_known_estimators() -> None:
    batch = random_batch(etr.get("grpo"), noise=0.3)
    for name in ("ppo", "grpo", "dapo", "dr_grpo", "etr"):
        assert reference(etr.get(name), batch) == "π_old", name
    assert reference(etr.get("reinforce"), batch) == "π"
    assert reference(etr.get("gspo", eps_low=0.9, eps_high=9.0), batch) == "by answer"
    low = (batch.log_probs - batch.old_log_probs)[batch.response_mask].exp().min().item()
    weights = reference(etr.get("cispo", eps_high=0.1), batch)  # r, but at most 1.1
    assert weights == f"π/w, w {low:.2g} to 1.1"
    nothing = dataclasses.replace(batch, advantages=torch.zeros_like(batch.advantages))
    assert reference(etr.get("reinforce"), nothing) == "none"


def test_demonstrations_are_the_sft_line_of_the_table() -> None:
    """SFT: π_ref = π, A = its weight, nothing masked, whatever the old policy was."""
    batch = random_batch(etr.get("hpt")).with_columns(given=torch.full((16,), 5))
    objective = etr.get("hpt", sft=0.3)
    parts = four_parts(objective, batch)
    kept = batch.response_mask
    assert torch.equal(parts.mask, kept) and (parts.advantage[kept] == 0.3).all()
    torch.testing.assert_close(parts.denominator[kept], parts.likelihood[kept])
    assert reference(objective, batch) == "π"


def test_an_objective_against_its_advantage_has_no_parts() -> None:
    @dataclasses.dataclass(frozen=True)
    class Backwards(GRPO):
        def surrogate(self, batch: etr.Batch, log_ratio: Tensor, region: etr.Region) -> Tensor:
            return -super().surrogate(batch, log_ratio, region)

    batch = tokens([[0.0, 0.0], [0.0]], [1.0, -1.0])
    parts = four_parts(Backwards(), batch)
    assert parts.defined.tolist() == [[False, False], [False, True]] and not parts.mask.any()


def test_the_table_has_a_line_for_each() -> None:
    lines = table([etr.get("grpo"), etr.get("reinforce")], random_batch(etr.get("grpo"))).splitlines()
    assert lines[0].split("  ")[0] == "objective" and len(lines) == 3
    assert "π_old" in lines[1] and lines[2].split()[0] == "reinforce" and lines[2].endswith("0%")
    assert lines[2].split()[1] == "0%"  # the plain policy gradient masks nothing


# Soft tokens ----------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([0.5, -1.0, 0.2], dtype=F)


def drawn(count: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return soft_grpo.perturbed(LOGITS.log_softmax(-1), torch.rand(count, 3, generator=rng, dtype=F))


def test_the_density_is_that_of_the_noise() -> None:
    """It integrates to 1 (a product of Gumbel densities on a grid), and its gradient is the score."""
    grid = torch.linspace(-12, 40, 20001, dtype=F).unsqueeze(-1)
    one = soft_grpo.log_density(grid, torch.tensor([-0.7], dtype=F)).exp().sum() * (52 / 20000)
    assert one.item() == pytest.approx(1.0, abs=1e-6)
    x, leaf = drawn(5), LOGITS.clone().requires_grad_()
    soft_grpo.log_density(x, leaf.log_softmax(-1)).sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, soft_grpo.score(x, LOGITS).sum(0))


def test_soft_tokens_are_the_policys_tokens_in_the_limit() -> None:
    """The argmax is a token of π, and its score is the mean of the soft scores that lead to it; their mean is 0."""
    count = 200_000
    x, probs = drawn(count), LOGITS.softmax(-1)
    hard, scores = x.argmax(-1), soft_grpo.score(x, LOGITS)
    assert (scores.mean(0).abs() < 5 * scores.std(0) / count**0.5).all()
    for k in range(3):
        share = (hard == k).double().mean().item()
        assert abs(share - probs[k].item()) < 5 * (0.25 / count) ** 0.5
        want = torch.eye(3, dtype=F)[k] - probs  # ∇log π_k
        assert (scores[hard == k].mean(0) - want).abs().max() < 5 * 2 / (share * count) ** 0.5
    cold = soft_grpo.soft_token(x[:100], 1e-3)
    torch.testing.assert_close(cold.round(), torch.nn.functional.one_hot(hard[:100], 3).double())


def test_the_group_gradient_is_that_of_the_expected_reward() -> None:
    """R = y·w for a soft token y at τ = 0.7: against central differences of E[R] with the same noise."""
    count, size, worth = 100_000, 4, torch.tensor([1.0, 0.0, 0.4], dtype=F)
    rng = torch.Generator().manual_seed(1)
    uniforms = torch.rand(count, size, 3, generator=rng, dtype=F)

    def reward(logits: Tensor) -> Tensor:
        return soft_grpo.soft_token(soft_grpo.perturbed(logits.log_softmax(-1), uniforms), 0.7) @ worth

    x = soft_grpo.perturbed(LOGITS.log_softmax(-1), uniforms)
    each = soft_grpo.gradient(x, reward(LOGITS), LOGITS.expand(count, 3))
    for v in range(3):
        step = 1e-4 * torch.eye(3, dtype=F)[v]
        want = (1 - 1 / size) * (reward(LOGITS + step) - reward(LOGITS - step)).mean().item() / 2e-4
        assert each[:, v].mean().item() == pytest.approx(want, abs=5 * each[:, v].std().item() / count**0.5)


def test_the_clipped_soft_ratio_starts_as_the_policy_gradient() -> None:
    x, advantages = drawn(6), torch.tensor([1.0, -1.0, 0.5, 2.0, -0.5, 0.0], dtype=F)
    leaf, old = LOGITS.clone().requires_grad_(), LOGITS.log_softmax(-1)
    value = soft_grpo.clipped(x, advantages, leaf.log_softmax(-1), old)
    torch.testing.assert_close(value.detach(), advantages)
    (found,) = torch.autograd.grad(value.sum(), leaf)
    torch.testing.assert_close(found, (advantages.unsqueeze(-1) * soft_grpo.score(x, LOGITS)).sum(0))
    far = soft_grpo.clipped(x, advantages, old + 3 * torch.eye(3, dtype=F)[0], old)
    assert (far[advantages > 0] <= 1.2 * advantages[advantages > 0] + 1e-12).all()
