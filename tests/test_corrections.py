"""Weights for the engine's samples: against plain loops, and as what they are for, an unbiased expectation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from batches import tokens

import etr
from etr.corrections import KINDS, LEVELS, Correction
from etr.errors import FieldError, InputError
from etr.recipe import load_recipe, recipe_from_dict

OLD = torch.tensor([[-1.0, -2.0, -0.5], [-0.1, -3.0, torch.nan]], dtype=torch.float64)
ROLLOUT = torch.tensor([[-1.5, -1.0, -0.6], [-0.1, -0.5, torch.nan]], dtype=torch.float64)
MASK = ~OLD.isnan()


def by_hand(kind: str, level: str, low: float, high: float) -> list[list[float]]:
    found = []
    for old, rollout in zip(OLD.tolist(), ROLLOUT.tolist(), strict=True):
        ratios = [math.exp(a - b) for a, b in zip(old, rollout, strict=True) if not math.isnan(a)]
        if level == "sequence":
            ratios = [math.prod(ratios)] * len(ratios)
        elif level == "geometric":
            ratios = [math.prod(ratios) ** (1 / len(ratios))] * len(ratios)
        kept = [min(w, high) if kind == "tis" else w * (low <= w <= high) for w in ratios]
        found.append(kept + [0.0] * (len(old) - len(kept)))
    return found


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (0.0, 1.2), (0.9, 1.0)])
def test_weights_are_those_of_a_plain_loop(kind: str, level: str, low: float, high: float) -> None:
    weights = Correction(kind, level, low, high).weights(OLD, ROLLOUT, MASK)
    expected = torch.tensor(by_hand(kind, level, low, high), dtype=torch.float64)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


def test_no_correction_has_no_weights_and_extreme_ratios_stay_finite() -> None:
    assert Correction().weights(OLD, ROLLOUT, MASK) is None
    far = Correction("tis", "sequence").weights(OLD + 1000, ROLLOUT, MASK)
    assert far is not None and far.max().item() == pytest.approx(2.0)


def test_corrected_samples_of_another_policy_give_the_expectation_under_this_one() -> None:
    """Σ_y q(y)·w(y)·f(y) = Σ_y p(y)·f(y) over a whole vocabulary, when the bound does not bite."""
    p, q = (torch.randn(7, generator=torch.Generator().manual_seed(s)).double().softmax(0) for s in (0, 1))
    weights = Correction("tis", high=1e6).weights(p.log()[:, None], q.log()[:, None], torch.ones(7, 1) > 0)
    assert weights is not None
    value = torch.arange(7.0).double()
    assert (q * weights[:, 0] * value).sum().item() == pytest.approx((p * value).sum().item())


def test_weights_multiply_the_objective_and_its_gradient_coefficient() -> None:
    objective = etr.get("grpo")
    plain = tokens([[0.0, 0.1], [-0.1]], [1.0, -1.0])
    weights = torch.tensor([[0.5, 2.0], [0.0, torch.nan]], dtype=torch.float64)
    weighted = replace(plain, weights=weights)
    kept = plain.response_mask
    expected = etr.policy_loss(objective, plain).per_token * torch.where(kept, weights, 0.0)
    torch.testing.assert_close(etr.policy_loss(objective, weighted).per_token, expected)
    expected = etr.gradient_coefficient(objective, plain) * torch.where(kept, weights, 0.0)
    torch.testing.assert_close(etr.gradient_coefficient(objective, weighted), expected)
    with pytest.raises(InputError, match="weights is nan at index"):
        etr.policy_loss(objective, replace(plain, weights=weights * torch.nan))


def test_a_recipe_holds_a_correction_and_refuses_bad_ones() -> None:
    recipe = load_recipe("etr", {"correction.kind": "mis", "correction.high": 3.0})
    assert recipe.correction == Correction("mis", high=3.0)
    assert recipe_from_dict(recipe.as_dict(), "x", "here") == recipe
    with pytest.raises(FieldError, match=r"correction.kind 'tiss'.*did you mean 'tis'"):
        load_recipe("etr", {"correction.kind": "tiss"})
    with pytest.raises(FieldError, match=r"correction.low is 1.5 and high 2; give low <= 1 <= high"):
        Correction(low=1.5)
    with pytest.raises(FieldError, match=r"correction.high is nan; give a number of at least 0"):
        Correction(high=math.nan)
