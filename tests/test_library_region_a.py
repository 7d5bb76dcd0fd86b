"""Trust-region methods, first part: clips, gates, masks and weights, token by token, by hand and in closed form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from batches import OLD, gradient, region_of, tokens

import etr
from etr.batch import Batch
from etr.errors import FieldError
from etr.toy.config import ToyConfig
from etr.toy.train import train
from toy_envs import make_model

NAMES = [
    *["trpo", "bnpo", "bnpo_beta", "reinforce_plus_plus", "reinforce_plus_plus_baseline", "gpg", "gspo_token"],
    *["gmpo", "sapo", "dppo_tv", "dppo_kl", "bandpo", "bapo", "two_sided", "spo_simple", "pspo", "topr"],
]


def one(ratio: float, advantage: float, old: float = OLD) -> Batch:
    """One token of one response; all policies but the current one agree."""
    before = torch.full((1, 1), old, dtype=torch.float64)
    now = before + math.log(ratio)
    mask, advantages = torch.ones(1, 1, dtype=torch.bool), torch.tensor([advantage], dtype=torch.float64)
    return Batch(now, before, mask, advantages, rollout_log_probs=before)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


LOW = {r: OLD + math.log(r) for r in (0.4, 0.5, 0.9, 1.5, 2.0, 3.0, 9.0)}  # log π after the move

ONE_TOKEN = [
    # objective, fields, r, A, per-token objective, gradient coefficient c
    ("two_sided", {}, 3.0, -1.0, -3.0, -3.0),  # min(min(3, 4)·−1, 1.2·−1): below δ nothing is bounded
    ("two_sided", {}, 9.0, -1.0, -4.0, 0.0),  # min(min(9, 4)·−1, 1.2·−1) = −4, no gradient
    ("two_sided", {}, 9.0, 1.0, 1.2, 0.0),  # A > 0: GRPO's clip comes first
    ("sapo", {}, 2.0, 1.0, 4 * sigmoid(1.0), 2 / math.cosh(0.5) ** 2),  # τ = 1: c = A·r·sech²((r − 1)/2)
    ("sapo", {}, 0.5, -1.0, -4 / 1.05 * sigmoid(-0.525), -0.5 / math.cosh(0.2625) ** 2),  # τ = 1.05
    ("spo_simple", {}, 1.5, 1.0, 1.5 - 0.25 / 0.4, 1.5 * (1 - 0.5 / 0.2)),  # turned back: c = −2.25
    ("spo_simple", {}, 0.9, -2.0, -1.8 - 2 * 0.01 / 0.4, 0.9 * (-2 + 2 * 0.1 / 0.2)),  # on its way: c = −0.9
    ("pspo", {}, 3.0, 1.0, 0.9 * 3 + 0.1, 2.7),  # r̃ = 0.9·3 + 0.1
    ("pspo", {"alpha": 0.5}, 0.5, -2.0, -1.5, -0.5),  # r̃ = 0.75, c = −2·0.5·0.5
    ("topr", {}, 9.0, 2.0, 2 * LOW[9.0], 2.0),  # A > 0: weight 1, however far
    ("topr", {}, 0.5, -1.0, -0.5 * LOW[0.5], -0.5),  # A < 0: weight r
    ("topr", {}, 2.0, -1.0, -LOW[2.0], -1.0),  # A < 0: weight at most 1
    ("topr", {"weight_pos": 3.0, "weight_neg": 0.5}, 0.5, -1.0, -0.25 * LOW[0.5], -0.25),
    ("topr", {"weight_pos": 3.0}, 2.0, 1.0, 3 * LOW[2.0], 3.0),
    ("topr", {"eps_low": 0.4, "eps_high": 0.5}, 0.5, -1.0, -0.6 * LOW[0.5], -0.6),  # clip(0.5, 0.6, 1.5)
    ("topr", {"eps_high": 0.5}, 2.0, -1.0, -1.5 * LOW[2.0], -1.5),
    ("gmpo", {}, 1.1, 2.0, 2.2, 2.2),  # log 1.1 lies inside ±0.4
    ("gmpo", {}, 2.0, 1.0, math.exp(0.4), 0.0),  # log 2 > 0.4
    ("gmpo", {}, 0.5, 1.0, 0.5, 0.5),  # one-sided: A > 0 below stays
    ("gmpo", {}, 0.5, -1.0, -math.exp(-0.4), 0.0),
    ("gmpo", {"log_low": 1.0}, 0.5, -1.0, -0.5, -0.5),
    ("gspo_token", {}, 1.1, 1.0, 1.0004, 0.0),
    ("gspo_token", {}, 1.1, -1.0, -1.1, -1.1),
    ("dppo_tv", {}, 2.0, 1.0, 2 * LOW[2.0], 2.0),  # p = e^−2 = 0.135: π − μ = 0.135 ≤ 0.15
    ("dppo_tv", {}, 3.0, 1.0, 0.0, 0.0),  # π − μ = 0.27 > 0.15
    ("dppo_tv", {}, 3.0, -1.0, -3 * LOW[3.0], -3.0),  # A < 0 and up: the mask is one-sided
    ("dppo_tv", {"delta_low": 0.05}, 0.5, -1.0, 0.0, 0.0),  # π − μ = −0.068 < −0.05
    ("dppo_tv", {"cap": 2.0}, 3.0, -1.0, -2 * LOW[3.0], -2.0),  # weight min(r, C)
    ("dppo_kl", {}, 1.5, 1.0, 1.5 * LOW[1.5], 1.5),  # KL = 0.0164 ≤ 0.05
    ("dppo_kl", {}, 2.0, 1.0, 0.0, 0.0),  # 0.1353·log ½ + 0.8647·log(0.8647/0.7293) = 0.0534 > 0.05
    ("dppo_kl", {}, 0.4, -1.0, -0.4 * LOW[0.4], -0.4),  # 0.1353·log 2.5 + 0.8647·log(0.8647/0.9459) = 0.0464 ≤ 0.05
    ("bnpo", {}, 1.5, 1.0, 1.2, 0.0),
    ("bnpo_beta", {}, 1.25, 1.0, 1.25, 1.25),  # inside [0.8, 1.28]
    ("bnpo_beta", {}, 20.0, -1.0, -10.0, 0.0),  # dual clip 10
    ("gpg", {}, 9.0, 2.0, 2 * LOW[9.0], 2.0),
    ("bapo", {}, 9.0, -1.0, -3.0, 0.0),  # dual clip 3
    ("ppo", {"dual_clip": 3.0}, 2.9, -2.0, -5.8, -5.8),  # min(−5.8, −2.4) = −5.8 > 3·−2: just inside
    ("ppo", {"dual_clip": 3.0}, 3.1, -2.0, -6.0, 0.0),  # max(−6.2, −6) = −6
    ("ppo", {"dual_clip": 1.4, "eps_low": 0.2}, 1.3, -1.0, -1.3, -1.3),  # ROLL's c = 1 + 2ε
]


@pytest.mark.parametrize(("name", "fields", "ratio", "advantage", "value", "coefficient"), ONE_TOKEN)
def test_one_token(
    name: str, fields: dict[str, object], ratio: float, advantage: float, value: float, coefficient: float
) -> None:
    objective, batch = etr.get(name, **fields), one(ratio, advantage)
    assert etr.policy_loss(objective, batch).per_token.item() == pytest.approx(value, rel=1e-12)
    assert etr.gradient_coefficient(objective, batch).item() == pytest.approx(coefficient, rel=1e-12)


RATIOS = [0.1, 0.5, 0.79, 0.81, 0.99, 1.01, 1.19, 1.27, 1.3, 2.0, 3.9, 4.1, 11.0]


def clip(x: float, low: float, high: float) -> float:
    return min(max(x, low), high)


# c(r, A) of one token with π_old = e^−2 in plain Python, from each paper's formula.
CLOSED: dict[str, Callable[[float, float], float]] = {
    "sapo": lambda r, a: a * r / math.cosh((1.0 if a > 0 else 1.05) * (r - 1) / 2) ** 2,
    "spo_simple": lambda r, a: r * (a - abs(a) * (r - 1) / 0.2),
    "pspo": lambda r, a: 0.9 * r * a,
    "topr": lambda r, a: a if a > 0 else a * clip(r, 0, 1),
    "gpg": lambda r, a: a,
    "trpo": lambda r, a: r * a,
    "two_sided": lambda r, a: r * a if (a > 0 and r < 1.2) or (a < 0 and 0.8 < r < 4) else 0.0,
    "bnpo": lambda r, a: r * a if (a > 0 and r < 1.2) or (a < 0 and r > 0.8) else 0.0,
    "bnpo_beta": lambda r, a: r * a if (a > 0 and r < 1.28) or (a < 0 and 0.8 < r < 10) else 0.0,
    "gmpo": lambda r, a: r * a if (a > 0 and math.log(r) < 0.4) or (a < 0 and math.log(r) > -0.4) else 0.0,
    "gspo_token": lambda r, a: r * a if (a > 0 and r < 1.0004) or (a < 0 and r > 0.9997) else 0.0,
    "dppo_tv": lambda r, a: 0.0 if a * (r - 1) > 0 and abs(r - 1) * math.exp(OLD) > 0.15 else min(r, 20) * a,
    "dppo_kl": lambda r, a: 0.0 if a * (r - 1) > 0 and binary_kl(math.exp(OLD), r) > 0.05 else min(r, 20) * a,
}


def binary_kl(p: float, r: float) -> float:
    """KL of Bernoulli(p) to Bernoulli(r·p)."""
    if r * p >= 1:
        return math.inf
    return p * math.log(1 / r) + (1 - p) * math.log((1 - p) / (1 - r * p))


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.5, -2.0])
@pytest.mark.parametrize("name", CLOSED)
def test_gradient_coefficient_in_closed_form(name: str, advantage: float) -> None:
    """Every ratio is a response of its own, so that row methods see one token as well."""
    old = torch.full((len(RATIOS), 1), OLD, dtype=torch.float64)
    now = old + torch.tensor(RATIOS, dtype=torch.float64).log().unsqueeze(-1)
    advantages = torch.full((len(RATIOS),), advantage, dtype=torch.float64)
    batch = Batch(now, old, torch.ones_like(old, dtype=torch.bool), advantages, rollout_log_probs=old)
    found = etr.gradient_coefficient(etr.get(name), batch).squeeze(-1)
    want = torch.tensor([CLOSED[name](r, advantage) for r in RATIOS], dtype=torch.float64)
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-14)


def test_two_sided_is_the_minimum_of_both_bounds() -> None:
    """TRL writes min(min(r, δ)·A, clip(r)·A); the dual clip writes it another way."""
    for ratio in RATIOS:
        for a in (1.5, -1.5):
            literal = min(min(ratio, 4.0) * a, clip(ratio, 0.8, 1.2) * a)
            found = etr.policy_loss(etr.get("two_sided"), one(ratio, a)).per_token.item()
            assert found == pytest.approx(literal, rel=1e-12)


def test_sapo_decays_as_the_paper_says() -> None:
    """The gate's slope f' = c/(r·A) for τ = 1: 0.94 at r = 0.5 and 1.5, 0.79 at r = 2, and 1 at r = 1."""
    slopes = {r: etr.gradient_coefficient(etr.get("sapo"), one(r, 1.0)).item() / r for r in (0.5, 1.0, 1.5, 2.0)}
    assert slopes == pytest.approx({0.5: 0.94, 1.0: 1.0, 1.5: 0.94, 2.0: 0.79}, abs=5e-3)


def test_spo_has_its_maximum_at_the_bound() -> None:
    for a, best in ((1.0, 1.2), (-3.0, 0.8)):
        assert etr.gradient_coefficient(etr.get("spo_simple"), one(best, a)).item() == pytest.approx(0.0, abs=1e-12)
        at = etr.policy_loss(etr.get("spo_simple"), one(best, a)).per_token.item()
        near = [etr.policy_loss(etr.get("spo_simple"), one(best + h, a)).per_token.item() for h in (-0.01, 0.01)]
        assert at > max(near)


def test_pspo_contracts_the_distance_to_the_old_policy() -> None:
    """TV(π̃, π_old) = (1 − α)·TV(π, π_old), with π̃ read off the value at A = 1: π̃ = π_old·r̃."""
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    new = torch.tensor([0.1, 0.2, 0.7], dtype=torch.float64)
    batch = Batch(new.log()[:, None], old.log()[:, None], torch.ones(3, 1, dtype=torch.bool), torch.ones(3).double())
    smooth = old * etr.policy_loss(etr.get("pspo", alpha=0.25), batch).per_token.squeeze(-1)
    assert smooth.sum().item() == pytest.approx(1.0)
    assert (smooth - old).abs().sum().item() == pytest.approx(0.75 * (new - old).abs().sum().item())


# Rows -----------------------------------------------------------------------------------------------------------


def test_topr_weighs_the_whole_answer() -> None:
    """A < 0, r = 0.5 and 1.5: Π r = 0.75 on both tokens; token by token 0.5 and 1 (1.5 is cut at 1)."""
    batch = tokens([[math.log(0.5), math.log(1.5)], [0.3]], [-1.0, 1.0])
    whole = etr.gradient_coefficient(etr.get("topr"), batch)
    torch.testing.assert_close(whole, torch.tensor([[-0.75, -0.75], [1.0, 0.0]], dtype=torch.float64))
    each = etr.gradient_coefficient(etr.get("topr", level="token"), batch)
    torch.testing.assert_close(each, torch.tensor([[-0.5, -1.0], [1.0, 0.0]], dtype=torch.float64))


def test_topr_is_bounded_where_reinforce_is_not() -> None:
    """A wrong answer that becomes impossible: r·log r → 0, while −log π → ∞."""
    far = one(1e-8, -1.0)
    assert etr.policy_loss(etr.get("reinforce"), far).per_token.item() > 20
    assert abs(etr.policy_loss(etr.get("topr"), far).per_token.item()) < 1e-6


def test_gmpo_by_hand() -> None:
    """ℓ = (1, −1), A = 2: ℓ̃ = (0.4, −1), mean −0.3, J = 2·e^−0.3 on both tokens; only the second has a gradient.

    A = −1: ℓ̃ = (1, −0.4), mean 0.3, J = −e^0.3; only the first has a gradient.
    """
    out = etr.policy_loss(etr.get("gmpo"), tokens([[1.0, -1.0], [1.0, -1.0]], [2.0, -1.0]))
    up, down = 2 * math.exp(-0.3), -math.exp(0.3)
    torch.testing.assert_close(out.per_token, torch.tensor([[up, up], [down, down]], dtype=torch.float64))
    assert out.loss.item() == pytest.approx(-(up + down) / 2)
    _, found = gradient(etr.get("gmpo"), tokens([[1.0, -1.0], [1.0, -1.0]], [2.0, -1.0]))
    want = torch.tensor([[0.0, -up / 4], [-down / 4, 0.0]], dtype=torch.float64)  # −J/(B·T)
    torch.testing.assert_close(found, want)


def test_gmpo_is_pessimistic_about_the_whole_response() -> None:
    """J_i ≤ A_i·s_i with s_i the geometric mean of the unclipped ratios; and its spread over tokens is none."""
    rng = torch.Generator().manual_seed(0)
    shift = 2 * torch.randn(50, 4, generator=rng, dtype=torch.float64)
    advantages = torch.randn(50, generator=rng, dtype=torch.float64)
    old = torch.full_like(shift, OLD)
    out = etr.policy_loss(etr.get("gmpo"), Batch(old + shift, old, torch.ones_like(old, dtype=torch.bool), advantages))
    assert (out.per_token == out.per_token[:, :1]).all()
    assert (out.per_token[:, 0] <= advantages * shift.mean(-1).exp() + 1e-12).all()


def test_gspo_token_lets_tokens_differ() -> None:
    """ℓ = (2e-4, 0): s = e^1e-4 inside the region. c_t = s·A_t; GSPO shares the mean advantage instead."""
    batch = tokens([[2e-4, 0.0]], [0.0])
    batch = dataclasses.replace(batch, advantages=torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    s = math.exp(1e-4)
    found = etr.gradient_coefficient(etr.get("gspo_token"), batch)
    torch.testing.assert_close(found, torch.tensor([[s, 3 * s]], dtype=torch.float64))
    shared = etr.gradient_coefficient(etr.get("gspo"), batch)
    torch.testing.assert_close(shared, torch.tensor([[2 * s, 2 * s]], dtype=torch.float64))


def test_gspo_token_is_gspo_for_one_advantage_per_response() -> None:
    batch = tokens([[1e-4, 3e-4, -2e-4], [0.4], [-0.1, -0.6]], [1.0, -2.0, 0.5])
    (loss, found), (want_loss, want) = (gradient(etr.get(name), batch) for name in ("gspo_token", "gspo"))
    torch.testing.assert_close(loss, want_loss)
    torch.testing.assert_close(found, want)


# Fields and training --------------------------------------------------------------------------------------------


REGIONS = {
    "two_sided": (0.8, 1.2),
    "bnpo": (0.8, 1.2),
    "bnpo_beta": (0.8, 1.28),
    "gmpo": (math.exp(-0.4), math.exp(0.4)),
    "gspo_token": (1 - 3e-4, 1 + 4e-4),
    "spo_simple": (0.8, 1.2),
    "sapo": (0.0, math.inf),
    "pspo": (0.0, math.inf),
    "trpo": (0.0, math.inf),
    "gpg": (0.0, math.inf),
}


@pytest.mark.parametrize("name", REGIONS)
def test_default_regions(name: str) -> None:
    region = region_of(etr.get(name), tokens([[0.1, 0.2], [0.3]], [1.0, -1.0]))
    assert (*region.low.unique().tolist(), *region.high.unique().tolist()) == pytest.approx(REGIONS[name], rel=1e-12)


BAD_FIELDS = [
    ("trpo", {"kl": "ful"}, "did you mean 'full'"),
    ("gmpo", {"log_low": -0.1}, "log_low"),
    ("sapo", {"tau_pos": 0.0}, "tau_pos"),
    ("dppo_tv", {"kind": "top"}, "did you mean 'topk'"),
    ("dppo_tv", {"cap": 0.5}, "cap"),
    ("dppo_tv", {"delta_low": -0.5}, "delta_low"),
    ("bandpo", {"kind": "js"}, "kind"),
    ("bandpo", {"delta": -1.0}, "delta"),
    ("bapo", {"low_least": 1.5}, "low_least"),
    ("bapo", {"count": "values"}, "did you mean 'value'"),
    ("bapo", {"step": 0.0}, "step"),
    ("two_sided", {"dual_clip": 0.9}, "dual_clip"),
    ("two_sided", {"dual_clip": 1.3, "eps_high": 0.4}, r"give dual_clip >= 1 \+ eps_high"),
    ("spo_simple", {"eps": 0.0}, "eps"),
    ("pspo", {"alpha": 1.5}, "alpha"),
    ("topr", {"level": "answer"}, "level"),
    ("topr", {"eps_high": -0.5}, "eps_high"),
    ("topr", {"weight_neg": -1.0}, "weight_neg"),
    ("reinforce_plus_plus", {"gamma": 1.1}, "gamma"),
    ("reinforce_plus_plus_baseline", {"level": "tokens"}, "did you mean 'token'"),
]


@pytest.mark.parametrize(("name", "fields", "said"), BAD_FIELDS)
def test_fields_out_of_range_are_refused(name: str, fields: dict[str, object], said: str) -> None:
    with pytest.raises(FieldError, match=said):
        etr.get(name, **fields)


FURTHER: list[tuple[str, dict[str, object]]] = [
    ("trpo", {"kl": "full"}),
    ("dppo_kl", {"kind": "topk", "anchor": "old"}),
    ("dppo_tv", {"kind": "topk"}),
    ("dppo_tv", {"anchor": "old"}),
    ("bandpo", {"kind": "chi2"}),
    ("bapo", {"count": "gradient"}),
    ("topr", {"level": "token"}),
    ("reinforce_plus_plus", {"beta": 0.01, "gamma": 0.95}),
]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize(("name", "fields"), [*((name, {}) for name in NAMES), *FURTHER])
def test_all_train(name: str, fields: dict[str, object], env: str) -> None:
    """Without error, finite, and better than they started."""
    recipe = etr.load_recipe(name, fields)
    history = train(recipe, make_model(env), ToyConfig(iterations=50, seeds=4, metrics_every=25))
    assert history.logits.isfinite().all()
    reward = history.curves["reward"]
    assert (reward[:, -1] > make_model(env).uniform_value + 0.05).all()
