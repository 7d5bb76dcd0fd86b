"""Weights for the engine's samples: against plain loops, and as what they are for, an unbiased expectation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from batches import gradient, tokens
from llm_runs import recipe, trainer

import etr
from etr.batch import Batch
from etr.corrections import KINDS, LEVELS, REJECTS, Correction
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
        kept = {
            "is": ratios,
            "tis": [min(w, high) for w in ratios],
            "mis": [w * (low <= w <= high) for w in ratios],
        }[kind]
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


def accepted(reject: str, low: float, high: float) -> list[list[bool]]:
    """Which tokens are kept, in plain Python."""
    found = []
    for old, rollout in zip(OLD.tolist(), ROLLOUT.tolist(), strict=True):
        logs = [a - b for a, b in zip(old, rollout, strict=True) if not math.isnan(a)]
        mean = sum(logs) / len(logs)
        statistics = {
            "token": [math.exp(x) for x in logs],
            "sequence": [math.exp(sum(logs))] * len(logs),
            "geometric": [math.exp(mean)] * len(logs),
            "k2": [sum(x * x / 2 for x in logs) / len(logs)] * len(logs),
            "k3": [sum(math.exp(x) - 1 - x for x in logs) / len(logs)] * len(logs),
        }[reject]
        found.append([low <= x <= high for x in statistics] + [False] * (len(old) - len(logs)))
    return found


# Response 0 has log ρ = 0.5, −1, 0.1, response 1 has 0, −2.5:
# their sums are −0.4 and −2.5, their means −0.133 and −1.25, their k2 means 0.21 and 1.5625.
REJECTIONS = [
    ("token", 0.5, 2.0, [[True, False, True], [True, False, False]]),
    ("sequence", 0.5, 2.0, [[True] * 3, [False] * 3]),
    ("geometric", 0.5, 2.0, [[True] * 3, [False] * 3]),
    ("geometric", 0.999, 1.001, [[False] * 3, [False] * 3]),
    ("k2", 0.0, 0.22, [[True] * 3, [False] * 3]),
    ("k2", 0.0, 0.2, [[False] * 3, [False] * 3]),
    ("k3", 0.0, 0.2, [[True] * 3, [False] * 3]),  # (0.1487 + 0.3679 + 0.0052)/3 = 0.1739 and 1.5821/2 = 0.791
    ("k3", 0.0, 0.8, [[True] * 3, [True, True, False]]),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reject", "low", "high", "kept"), REJECTIONS)
def test_rejection_is_that_of_a_plain_loop(
    kind: str, reject: str, low: float, high: float, kept: list[list[bool]]
) -> None:
    """Geo-RS is kind none with geometric, OpenRLHF's Seq-Mask-TIS kind is with geometric: its own token weights."""
    assert accepted(reject, low, high) == kept
    weights = Correction(kind, reject=reject, reject_low=low, reject_high=high).weights(OLD, ROLLOUT, MASK)
    plain = [[1.0] * 3] * 2 if kind == "none" else by_hand(kind, "token", 0.5, 2.0)
    expected = torch.where(torch.tensor(kept), torch.tensor(plain, dtype=torch.float64), 0.0)
    torch.testing.assert_close(weights, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reject", [name for name in REJECTS if name != "none"])
def test_samples_of_the_same_policy_are_kept_as_they_are_by_default(reject: str) -> None:
    for kind in KINDS:
        weights = Correction(kind, reject=reject).weights(OLD, OLD, MASK)
        assert weights is not None and torch.equal(weights, MASK.double())


def test_normalised_weights_have_mean_one_in_every_run() -> None:
    """With weights of 1 a rejection becomes the mean over the kept tokens: N/N_kept on each of them."""
    runs = (torch.stack([x, y]) for x, y in ((OLD, OLD), (ROLLOUT, OLD), (MASK, MASK)))
    weights = Correction("tis", normalize=True).weights(*runs)
    assert weights is not None
    assert weights.sum((-2, -1)).tolist() == pytest.approx([5.0, 5.0])  # five tokens
    raw = by_hand("tis", "token", 0.5, 2.0)
    total = sum(map(sum, raw))
    torch.testing.assert_close(weights[0], torch.tensor(raw, dtype=torch.float64) * 5 / total)
    torch.testing.assert_close(weights[1], MASK.double())
    rejected = Correction(reject="sequence", normalize=True).weights(OLD, ROLLOUT, MASK)
    assert rejected is not None and rejected.tolist() == [[pytest.approx(5 / 3)] * 3, [0.0] * 3]
    nothing = Correction(reject="geometric", normalize=True).weights(OLD, ROLLOUT, MASK)
    assert nothing is not None and not nothing.any()


def drifted(log_ratio: list[list[float]], advantages: list[float], engine: float = 0.0) -> Batch:
    """Tokens moved by `log_ratio` since they were sampled, by an engine whose log-probs were higher by `engine`."""
    batch = tokens(log_ratio, advantages)
    return replace(batch, rollout_log_probs=batch.old_log_probs + engine)


def test_the_sequence_mask_drops_wrong_answers_that_the_policy_has_left() -> None:
    """mean_t(log π_rollout − log π) of the four: 0.3, 0.3, 0.1, −0.4; above δ = 0.2 and A < 0 is the second only."""
    moved = [[-0.2, -0.4], [-0.5, -0.1], [-0.1], [0.4]]
    batch = drifted(moved, [1.0, -1.0, -1.0, -1.0])
    masked = Correction(sequence_mask=0.2).apply(batch)
    assert masked.weights is None and masked.columns["sequence_mask"].tolist() == [0.2] * 4
    objective = etr.get("ppo", eps_low=0.9, eps_high=0.9)
    plain, found = (etr.policy_loss(objective, b).per_token for b in (batch, masked))
    assert (found[1] == 0).all() and torch.equal(found[[0, 2, 3]], plain[[0, 2, 3]])
    (_, c), (_, without) = gradient(objective, masked), gradient(objective, batch)
    assert (c[1] == 0).all() and torch.equal(c[[0, 2, 3]], without[[0, 2, 3]])  # the denominator stays


def test_the_sequence_mask_follows_the_policy_of_the_moment_and_the_engine() -> None:
    """Nothing is dropped at the first update; what the engine overrated counts as drift from the start."""
    objective = etr.get("ppo", eps_low=0.9, eps_high=0.9)
    for engine, moved, dropped in ((0.0, 0.0, False), (0.0, -0.3, True), (0.25, 0.0, True), (0.25, 0.1, False)):
        batch = Correction(sequence_mask=0.2).apply(drifted([[moved, moved]], [-1.0], engine))
        assert (etr.gradient_coefficient(objective, batch) == 0).all().item() is dropped


def test_the_sequence_mask_is_the_same_in_micro_batches() -> None:
    objective = etr.get("grpo", eps_low=0.9, eps_high=0.9)
    batch = Correction("tis", sequence_mask=0.2).apply(drifted([[-0.3, -0.4], [-0.5, -0.1], [0.1]], [1.0, -1.0, -1.0]))
    whole, divisor = etr.policy_loss(objective, batch).loss, objective.denominator(batch.response_mask)
    parts = [etr.policy_loss(objective, batch.rows(slice(i, i + 1)), divisor).loss for i in range(3)]
    torch.testing.assert_close(sum(parts[1:], parts[0]), whole)
    assert Correction().apply(batch).weights is batch.weights  # nothing to multiply by


def test_the_trainer_carries_the_mask_into_its_updates() -> None:
    run = trainer(recipe("grpo", **{"correction.sequence_mask": 0.5, "correction.reject": "k3"}))
    batch = run.to_batch(run.collector.collect(1))
    assert (batch.columns["sequence_mask"] == 0.5).all()
    assert batch.weights is not None and torch.equal(batch.weights != 0, batch.response_mask)  # the same weights here
    assert math.isfinite(run.step(1)["grad_norm"])


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
    found = load_recipe("etr", {"correction.kind": "mis", "correction.high": 3.0})
    assert found.correction == Correction("mis", high=3.0)
    assert recipe_from_dict(found.as_dict(), "x", "here") == found
    strict = load_recipe("grpo", {"correction.reject": "k3", "correction.reject_high": 0.001})
    strict = strict.replace({"correction.sequence_mask": 0.5, "correction.normalize": True})
    assert strict.correction == Correction(reject="k3", reject_high=0.001, normalize=True, sequence_mask=0.5)
    assert recipe_from_dict(strict.as_dict(), "x", "here") == strict
    with pytest.raises(FieldError, match=r"correction.kind 'tiss'.*did you mean 'tis'"):
        load_recipe("etr", {"correction.kind": "tiss"})
    with pytest.raises(FieldError, match=r"correction.low is 1.5 and high 2; give low <= 1 <= high"):
        Correction(low=1.5)
    with pytest.raises(FieldError, match=r"correction.high is nan; give a number of at least 0"):
        Correction(high=math.nan)


BAD: list[tuple[dict[str, object], str]] = [
    ({"reject": "geometrc"}, r"unknown correction.reject 'geometrc'; did you mean 'geometric'\?"),
    ({"level": "tokens"}, r"unknown correction.level 'tokens'; did you mean 'token'\?"),
    ({"reject_high": -1.0}, r"correction.reject_high is -1.0; give a number of at least 0"),
    ({"sequence_mask": math.inf}, r"correction.sequence_mask is inf; give a number of at least 0"),
    ({"sequence_mask": True}, r"correction.sequence_mask is True; give a number of at least 0"),
    ({"high": None}, r"correction.high is None; give a number of at least 0"),
    ({"normalize": 1}, r"correction.normalize is 1; give true or false"),
    ({"reject": "token", "reject_low": 1.5}, r"give reject_low <= 1 <= reject_high"),
    ({"reject": "k2", "reject_low": 0.1}, r"reject_low is 0.1 and reject_high 0.01, .* give reject_low <= 0 <="),
]


@pytest.mark.parametrize(("fields", "sentence"), BAD)
def test_fields_that_cannot_be_are_refused_in_one_sentence(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(FieldError, match=sentence) as error:
        Correction(**fields)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
