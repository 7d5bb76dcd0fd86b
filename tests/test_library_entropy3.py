"""SAFE's controller against a plain re-implementation; state of all entropy methods; and that every one trains."""

from __future__ import annotations

import dataclasses
import io
import math
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from softmax_batches import HALF, SAMPLES, loss_and_slope, prepared, softmax_batch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import FieldError
from etr.laws import random_batch
from etr.laws.base import run
from etr.objective import Objective, State
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

NAMES = [
    *("entropy_bonus", "adaptive_entropy", "adaptive_kl", "epo", "aepo_arbitrary", "dcpo_distribution", "lp_reg"),
    *("siren", "steer", "earl", "high_entropy_tokens", "safe", "f_dpg", "copg"),
]


# safe ---------------------------------------------------------------------------------------------------------------


class PlainSafe:
    """The controller in plain Python, for batches of one KL and one reward each; a window of 3 instead of 50."""

    def __init__(self) -> None:
        self.kl, self.ema, self.integral, self.error = 0.0, math.nan, 0.0, 0.0
        self.rewards: list[float] = []

    def excess(self, kl: float, reward: float) -> float:
        self.kl = 0.9 * self.kl + 0.1 * kl
        self.rewards.append(reward)
        pid = 0.0
        if math.isnan(self.ema):
            self.ema = reward
        else:
            before, self.ema = self.ema, 0.95 * self.ema + 0.05 * reward
            error = self.ema - before - 0.001
            self.integral = min(1.0, max(-1.0, self.integral + error))
            pid = 0.3 * error + 0.01 * self.integral + 0.05 * (error - self.error)
            self.error = error
        return max(0.0, self.kl - min(0.6, max(0.1, (0.3 + pid) * self.phase())))

    def phase(self) -> float:
        recent, old = self.rewards[-3:], self.rewards[-6:-3] if len(self.rewards) >= 6 else self.rewards[-3:]
        if len(self.rewards) < 3:
            return 1.5
        if fmean(recent) > fmean(old) + 0.01:
            return 1.2
        return 1.0 if pstdev(recent) < 0.02 and fmean(recent) > 0.7 else 0.8


def rollout(kl: float, reward: float) -> Batch:
    rewards = torch.full((4,), reward, dtype=torch.float64)
    batch = softmax_batch(HALF.log(), SAMPLES.unsqueeze(-1), rewards)
    return dataclasses.replace(batch, ref_log_probs=batch.old_log_probs - kl)


def test_safe_controller_against_plain_python() -> None:
    """Rewards that rise, fall and stay, so that all four phases and both ends of the threshold are met."""
    rewards = [0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.4, 0.3, 0.3, 0.3]
    kls = [0.5, 3.0, 5.0, 1.0, 0.2, 2.0, 6.0, 0.1, 0.0, 0.0, 1.0, 0.5, 9.0, 9.0, 0.0, 0.0]
    objective, plain = etr.get("safe", window=3), PlainSafe()
    state, phases, found, want = None, set(), [], []
    for kl, reward in zip(kls, rewards, strict=True):
        ready, state = prepared(objective, rollout(kl, reward), state)
        found.append(ready.columns["excess"][0].item())
        want.append(plain.excess(kl, reward))
        phases.add(plain.phase())
    assert found == pytest.approx(want, abs=1e-12)
    assert phases == {1.5, 1.2, 1.0, 0.8} and 0.0 in want and max(want) > 0.5


def test_safe_controller_at_its_limits() -> None:
    """Jumps of the reward drive Σe and the threshold to their bounds; then 0.9, 0.9, 0.935 again and again, whose
    population standard deviation lies below 0.02 and the sample's above it."""
    rewards = [0.0, 60.0, 60.0, -90.0, -90.0, -90.0, *[0.9, 0.9, 0.935] * 4]
    objective, plain, state = etr.get("safe", window=3), PlainSafe(), None
    for reward in rewards:
        batch = dataclasses.replace(rollout(9.0, 0.0), rewards=torch.full((4,), reward, dtype=torch.float64))
        ready, state = prepared(objective, batch, state)
        assert ready.columns["excess"][0].item() == pytest.approx(plain.excess(9.0, reward), abs=1e-12)


@pytest.mark.parametrize("literal", [False, True])
def test_safe_penalty_and_its_gradient(literal: bool) -> None:
    """K = 0.1·10 = 1, threshold 0.3·1.5 = 0.45; gate 2/(H + 0.1). The working penalty pulls as 0.2·0.55·gate·KL."""
    batch = rollout(10.0, 0.0)
    uniform = torch.full_like(batch.old_log_probs, 1 / 3).log()
    ready = prepared(etr.get("safe"), batch)[0]
    ready = dataclasses.replace(ready, ref_log_probs=uniform)  # a KL whose gradient can be enumerated
    objective = etr.get("safe", literal=literal, entropy_coefficient=0.0)
    loss, slope = loss_and_slope(objective, ready, HALF.log())
    gate = 2 / (1.5 * math.log(2) + 0.1)
    if literal:
        assert loss == pytest.approx(0.1 * 0.55**2 * gate, rel=1e-12) and (slope == 0).all()  # a constant
        return
    leaf = HALF.log().requires_grad_()
    kl = (leaf.softmax(-1) * (leaf.log_softmax(-1) + math.log(3))).sum()
    torch.testing.assert_close(slope, 0.2 * 0.55 * gate * torch.autograd.grad(kl, leaf)[0], rtol=1e-10, atol=1e-14)
    assert slope.abs().max() > 0.01


def test_safe_entropy_term_and_gate_floor() -> None:
    """H = 8 nats: the gate is 2/8.1 raised to 0.5; without excess only −0.01·H is left."""
    batch = dataclasses.replace(rollout(0.0, 0.0), entropy=torch.full((4, 1), 8.0, dtype=torch.float64))
    ready = prepared(etr.get("safe"), batch)[0]
    assert ready.columns["gate"].tolist() == [0.5] * 4
    assert etr.policy_loss(etr.get("safe"), ready).loss.item() == pytest.approx(-0.08, rel=1e-12)


def test_safe_advantages_are_whitened_distances_from_the_critic() -> None:
    """R − V = (1, ½ | −1, −½ | ½): mean 0.1, variance (1 + ¼ + 1 + ¼ + ¼)/5 − 0.01 = 0.54."""
    rewards = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    values = torch.tensor([[0.0, 0.5], [1.0, 0.5], [0.5, math.nan]], dtype=torch.float64)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    batch = softmax_batch(HALF.log(), torch.zeros(3, 2, dtype=torch.long), rewards, values=values, response_mask=mask)
    found = prepared(etr.get("safe"), batch)[0].advantages[mask].tolist()
    assert found == pytest.approx([(x - 0.1) / math.sqrt(0.54) for x in (1.0, 0.5, -1.0, -0.5, 0.5)], rel=1e-12)


# State --------------------------------------------------------------------------------------------------------------

STATEFUL: list[tuple[str, dict[str, Any]]] = [
    ("adaptive_entropy", {"coefficient": 0.1, "target": 1.2, "step": 0.1, "limit": 1.0, "controller": kind})
    for kind in ("bang-bang", "integral", "sac", "proportional")
]
STATEFUL += [("adaptive_kl", {"horizon": 20.0, "target": 0.01}), ("epo", {"steps": 3}), ("siren", {}), ("safe", {})]
STATEFUL += [("safe", {"window": 2})]


def steps(objective: Objective, batches: list[Batch], state: State) -> tuple[list[Tensor], State]:
    """The losses of some steps, and the state after them."""
    losses = []
    for batch in batches:
        ready, state = objective.prepare(batch, state)
        losses.append(etr.policy_loss(objective, ready).loss)
    return losses, state


def same_state(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_a_run_that_is_saved_and_resumed_is_the_same(name: str, fields: dict[str, Any]) -> None:
    objective = etr.get(name, **fields)
    batches = [random_batch(objective, seed=seed) for seed in range(6)]
    start = objective.init_state((), torch.device("cpu"))
    kept = {key: value.clone() for key, value in start.items()}
    whole, last = steps(objective, batches, start)
    assert same_state(start, kept), "the state was changed in place"
    first, middle = steps(objective, batches[:3], start)
    file = io.BytesIO()
    torch.save(middle, file)
    file.seek(0)
    rest, resumed = steps(objective, batches[3:], torch.load(file, weights_only=True))
    assert same_state(last, resumed) and all(map(torch.equal, whole, first + rest))
    forgetful = fields.get("controller") == "proportional"  # the one rule without memory
    assert same_state(steps(objective, batches[3:], start)[1], last) == forgetful


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_runs_keep_their_own_state(name: str, fields: dict[str, Any]) -> None:
    objective, cpu = etr.get(name, **fields), torch.device("cpu")
    batches = [random_batch(objective, runs=(2, 3), seed=seed) for seed in range(4)]
    losses, state = steps(objective, batches, objective.init_state((2, 3), cpu))
    assert all(value.shape[:2] == (2, 3) for value in state.values())
    for i, j in ((0, 0), (1, 2)):
        alone, own = steps(objective, [run(batch, i, j) for batch in batches], objective.init_state((), cpu))
        for one, many in zip(alone, losses, strict=True):
            torch.testing.assert_close(one, many[i, j], rtol=1e-12, atol=1e-14)
        for key in own:
            torch.testing.assert_close(own[key], state[key][i, j], rtol=1e-12, atol=1e-14)


# All ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str, env: str) -> None:
    model = make_model(env)
    history = train(load_recipe(name), model, ToyConfig(iterations=50, seeds=4, metrics_every=10))
    reward = history.curves["reward"]
    assert history.logits.isfinite().all() and reward.isfinite().all()
    assert (reward[:, -1] > reward[:, 0]).all()


@pytest.mark.parametrize("name", NAMES)
def test_defaults_that_the_file_does_not_change_are_the_bases(name: str) -> None:
    """A mixin's fields must not come between a base and its defaults."""
    objective = etr.get(name)
    bases = [b for b in type(objective).__mro__[1:] if "__dataclass_fields__" in vars(b)]
    for field in dataclasses.fields(bases[0]):
        if field.name not in type(objective).__annotations__:
            assert getattr(objective, field.name) == field.default


WRONG: list[tuple[str, dict[str, Any]]] = [
    *(("lp_reg", {"kappa": 2.0}), ("siren", {"top_p": 0.0}), ("steer", {"w_min": 0.0}), ("earl", {"quantile": 1.5})),
    *(("high_entropy_tokens", {"fraction": 0.0}), ("f_dpg", {"divergence": "kll"}), ("epo", {"band_high": 0.1})),
    *(("adaptive_kl", {"kl_kind": "k4"}), ("dcpo_distribution", {"hot": 0.0}), ("aepo_arbitrary", {"level": "word"})),
    *(("safe", {"window": 0}), ("steer", {"weighting": "cubic"}), ("adaptive_entropy", {"step": -1.0})),
]


@pytest.mark.parametrize(("name", "fields"), WRONG)
def test_fields_out_of_range_are_refused(name: str, fields: dict[str, Any]) -> None:
    (field,) = fields
    with pytest.raises(FieldError, match=rf"\.{field}"):
        etr.get(name, **fields)
