"""Objectives that have a say in the sampling, across steps: replay, temperatures, state, and whole runs."""

from __future__ import annotations

import dataclasses
import io
import math
from typing import cast

import numpy as np
import pytest
import torch
from batches import OLD, tokens
from test_library_sampling import attempt, prepared, with_rewards
from torch import Tensor

import etr
from etr import exact
from etr.batch import Batch
from etr.corrections import Correction
from etr.errors import FieldError
from etr.laws import check_law, random_batch
from etr.loss import gradient_coefficient
from etr.objective import Objective, State
from etr.objectives.adaptive_temperature import AdaptiveTemperature
from etr.recipe import Recipe, load_recipe
from etr.replay import Buffer, buffer_in, empty
from etr.samplers import Sampler
from etr.toy.rollout import rollout, streams
from etr.toy.stack import stacked_objective
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

F, CPU = torch.float64, torch.device("cpu")
SAMPLERS = ["dynamic_sampling", "ghpo", "pope", "expert_anchor", "icpo", "hpt", "spear", "arpo", "aepo_rollout"]
NAMES = [*SAMPLERS, "adaptive_temperature", "d3s"]
TREE = make_model("tree-medium")


# SPEAR ----------------------------------------------------------------------------------------------------------------


def buffer(prompts: list[int], ages: list[int]) -> Buffer:
    size = len(prompts)
    shown = torch.arange(size).unsqueeze(-1).expand(size, 2)
    return Buffer(shown, -shown.double(), torch.tensor(prompts), torch.tensor(ages))


def test_the_oldest_of_a_prompt_comes_first() -> None:
    held = buffer([1, 0, 1, 1, -1, 0], [0, 0, 2, 5, 0, 7])  # newest first, one place empty
    assert held.ranks()[[0, 1, 2, 3, 5]].tolist() == [2, 1, 1, 0, 0]
    found, shown, made = held.take(1, 3)
    assert (
        found.tolist() == [True, True, False] and shown[:2, 0].tolist() == [1, 2] and made[:2, 0].tolist() == [-1, -2]
    )
    later = held.older(torch.tensor([0, 2, 0]), most=8)  # two of prompt 1 were replayed; the last would be 8 steps old
    assert later.prompt.tolist() == [1, 0, -1, -1, -1, -1] and later.age[:2].tolist() == [1, 1]


def test_a_full_buffer_keeps_the_newest() -> None:
    held = buffer([3, 3, 3], [0, 1, 2])
    tokens_ = torch.tensor([[7], [8], [9]])
    new = held.with_new(tokens_, tokens_.double(), torch.tensor([0, 1, 2]), torch.tensor([True, False, True]))
    assert new.prompt.tolist() == [0, 2, 3] and new.tokens.tolist() == [[7, 0], [9, 0], [0, 0]]
    assert new.age.tolist() == [0, 0, 0] and empty((2,), 3, CPU).tokens.shape == (2, 3, 0)


def spear_batch(given: list[int], rewards: list[float]) -> Batch:
    batch = with_rewards([[0.0], [0.0], [0.0], [0.3]], rewards, [0, 0, 0, 0], tokens=torch.arange(4).unsqueeze(-1))
    batch = dataclasses.replace(batch, rollout_log_probs=torch.full((4, 1), OLD + 0.1, dtype=F))
    return batch.with_columns(given=torch.tensor(given))


def test_replayed_answers_have_the_advantage_of_today() -> None:
    """Others: z-scores of 1, 0, 0 alone: √2, −1/√2, −1/√2. Replayed: c(t)·(1 − median), ρ = e^{0.3 − 0.1}."""
    objective = etr.get("spear", ramp=8, eps_high=0.5)
    means = torch.tensor([0.1, 0.9, 0.8], dtype=F)
    state = objective.init_state((), CPU) | {"step": torch.tensor(2.0, dtype=F), "means": means}
    batch = prepared(objective, spear_batch([0, 0, 0, 1], [1.0, 0.0, 0.0, 1.0]), state)
    weight = (1 - math.cos(math.pi * 2 / 8)) / 2
    today = weight * (1 - float(np.median([1 / 3] * 4 + [0.1, 0.9, 0.8])))
    want = [math.sqrt(2), -1 / math.sqrt(2), -1 / math.sqrt(2), today]
    assert batch.advantages[:, 0].tolist() == pytest.approx(want)
    c = gradient_coefficient(objective, batch)[:, 0]
    assert c.tolist() == pytest.approx([*want[:3], today * math.exp(0.2)])  # the ratio is to the policy of then
    late = objective.init_state((), CPU) | {"step": torch.tensor(500.0, dtype=F), "means": means}
    full = prepared(objective, spear_batch([0, 0, 0, 1], [1.0, 0.0, 0.0, 1.0]), late).advantages[3, 0].item()
    assert full == pytest.approx(today / weight)  # constant at c_max


def test_only_new_successes_above_the_mean_are_kept_and_each_is_replayed_once() -> None:
    objective = etr.get("spear", share=0.5)
    state = objective.prepare(spear_batch([0, 0, 0, 0], [1.0, 0.0, 0.5, 1.0]), objective.init_state((), CPU))[1]
    held = buffer_in(state)
    assert sorted(held.tokens[held.prompt == 0, 0].tolist()) == [0, 3]
    sampler = cast(Sampler, objective)
    runs: State = {name: value.unsqueeze(0) for name, value in state.items()}
    begun = sampler.start(attempt([[0, 0, 0, 0]], 1, state=runs))
    assert begun is not None and begun.trained and begun.given[0].tolist() == [[0, 0, 1, 1]]
    assert sorted(begun.tokens[0, 0, 2:, 0].tolist()) == [0, 3] and begun.log_probs is not None
    assert begun.log_probs[0, 0, 2:, 0].tolist() == [OLD, OLD]
    _, after = objective.prepare(spear_batch([0, 0, 1, 1], [0.0, 0.0, 1.0, 1.0]), state)
    assert (buffer_in(after).prompt == -1).all()  # both were used, and the replayed are not kept again
    none = objective.prepare(spear_batch([0] * 4, [1.0] * 4), objective.init_state((), CPU))[1]
    assert (buffer_in(none).prompt == -1).all()  # no one is above the mean


# Temperature ----------------------------------------------------------------------------------------------------------


def entropies(values: list[float], rewards: list[float]) -> Batch:
    batch = with_rewards([[0.0] for _ in values], rewards, [0] * len(values))
    return dataclasses.replace(batch, entropy=torch.tensor(values, dtype=F).unsqueeze(-1))


def temperatures(objective: AdaptiveTemperature, batches: list[Batch], at: list[float]) -> list[float]:
    state = objective.init_state((), CPU)
    for batch in batches:
        state = objective.prepare(batch, state)[1]
    return cast(list[float], objective.sampling_temperature(state, torch.tensor([at], dtype=F))[0].tolist())


def test_temperature_by_token() -> None:
    """x = ln H = −2, −1, 0, 1, 2: pivot the 0.8-quantile 1.2; above it 0.8, below −3.2 are the ends of the scale."""
    batch = entropies([math.exp(x) for x in (-2, -1, 0, 1, 2)], [1, 0, 0, 0, 0])
    at = [math.exp(x) for x in (2.0, 1.6, 1.2, -0.4, -2.0, 9.0)]
    want = [1.05, 1.025, 1.0, 0.975, 0.95, 1.05]
    assert temperatures(AdaptiveTemperature(), [batch], at) == pytest.approx(want)
    as_published = [1.05, 1.025, 1.0, 1.025, 1.05, 1.05]
    assert temperatures(AdaptiveTemperature(literal=True), [batch], at) == pytest.approx(as_published)
    assert temperatures(AdaptiveTemperature(base=0.7), [], at) == [0.7] * 6  # nothing is known yet


def test_temperature_by_step() -> None:
    low, high = entropies([0.2, 0.4], [1, 0]), entropies([0.6, 0.8], [1, 0])
    switch = AdaptiveTemperature(kind="switch")
    assert temperatures(switch, [high, low], [1.0]) == [1.2] and temperatures(switch, [low, high], [1.0]) == [0.8]
    spread = AdaptiveTemperature(kind="spread", amount=0.5, low=0.9, high=1.1)
    mixed, dead = entropies([0.5] * 4, [1, 1, 0, 0]), entropies([0.5] * 4, [1, 1, 1, 1])
    assert temperatures(spread, [mixed], [1.0]) == [1.0]
    quarter = entropies([0.5] * 4, [1, 0, 0, 0])  # u = 4·3/16 = 0.75; the EMA of 1 and 0.75 is 0.975
    assert temperatures(spread, [mixed, quarter], [1.0]) == pytest.approx([max(0.9, 1 + 0.5 * (0.75 - 0.975))])
    assert temperatures(spread, [mixed, dead], [1.0]) == [0.9]
    with pytest.raises(FieldError, match="did you mean 'tokens'"):
        AdaptiveTemperature(kind="token")


def test_tempered_samples_know_who_drew_them_and_are_weighed() -> None:
    objective = AdaptiveTemperature(kind="switch", high=2.0, target=9.0)
    logits = torch.randn(
        3, TREE.prompts, TREE.states, TREE.vocab_size, generator=torch.Generator().manual_seed(0), dtype=F
    )
    state = {name: torch.ones_like(value) for name, value in objective.init_state((3,), CPU).items()}
    recipe = Recipe("hot", objective, correction=Correction("tis", high=1e9))
    first, more = streams(range(3), (TREE.prompts, 500, TREE.horizon + TREE.noise_size), F)
    batch, index = rollout(recipe, TREE, logits, next(first), next(more), state=state)

    def taken(table: Tensor) -> Tensor:
        return table.log_softmax(-1).flatten(-2).gather(-1, index.flatten(-2)).reshape(batch.log_probs.shape)

    assert batch.rollout_log_probs is not None and batch.weights is not None and batch.rewards is None
    torch.testing.assert_close(batch.rollout_log_probs, taken(logits / 2))
    torch.testing.assert_close(batch.old_log_probs, taken(logits))
    torch.testing.assert_close(batch.weights, (batch.old_log_probs - batch.rollout_log_probs).exp())
    assert batch.group is not None
    whole, rewards = batch.weights.prod(-1), batch.group.mean  # of the group: the mean reward at temperature 2
    assert rewards.mean().item() == pytest.approx(exact.expected_reward(logits / 2, TREE).mean().item(), abs=0.02)
    assert whole.mean().item() == pytest.approx(1.0, abs=0.1)  # E under π_τ of π/π_τ
    cold = rollout(Recipe("cold", objective), TREE, logits, torch.rand(3, 8, 4, 5, dtype=F), state=state)[0]
    assert cold.weights is None  # a recipe without correction


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["expert_anchor", "icpo", "hpt", "spear", "pope"])
def test_laws_of_batches_with_given_tokens(name: str) -> None:
    """The laws' own batches have none: splitting, order and runs are tried on one that has."""
    objective = etr.get(name)
    batch = random_batch(objective, runs=(2,))
    given = torch.arange(16).remainder(4).clamp(max=2).expand(2, 16)
    batch = prepared(objective, batch.with_columns(given=given), objective.init_state((2,), CPU))
    c = gradient_coefficient(objective, batch)
    for run in range(2):
        alone = random_batch(objective, runs=(2,))
        one = dataclasses.replace(batch, **{
            f.name: value[run] for f in dataclasses.fields(alone) if isinstance(value := getattr(batch, f.name), Tensor)
        }, group=None, columns={key: value[run] for key, value in batch.columns.items()})  # fmt: skip
        torch.testing.assert_close(gradient_coefficient(objective, one), c[run])
        order = torch.randperm(16, generator=torch.Generator().manual_seed(run))
        torch.testing.assert_close(gradient_coefficient(objective, one.rows(order)), c[run][order])
    assert (c[~batch.response_mask] == 0).all() and torch.isfinite(c).all()
    assert not torch.allclose(c, gradient_coefficient(objective, random_batch(objective, runs=(2,))))


def steps(objective: Objective, first: int, last: int, logits: Tensor, state: State) -> tuple[list[Batch], State]:
    """Rollouts of these steps under a fixed policy, and the state after them."""
    shape, recipe, found = (TREE.prompts, 8, TREE.horizon + TREE.noise_size), Recipe("own", objective), []
    numbers, more = streams(range(3), shape, F)
    for step, draw, further in zip(range(last), numbers, more, strict=False):
        if step >= first:
            batch, _ = rollout(recipe, TREE, logits, draw, further, state=state)
            batch, state = objective.prepare(batch, state)
            found.append(batch)
    return found, state


@pytest.mark.parametrize("name", [n for n in NAMES if etr.get(n).init_state((), CPU)])
def test_a_saved_state_goes_on_bit_for_bit(name: str) -> None:
    objective, logits = etr.get(name), torch.zeros(3, TREE.prompts, TREE.states, TREE.vocab_size, dtype=F)
    whole, end = steps(objective, 0, 6, logits, objective.init_state((3,), CPU))
    _, middle = steps(objective, 0, 3, logits, objective.init_state((3,), CPU))
    kept = {key: value.clone() for key, value in middle.items()}
    file = io.BytesIO()
    torch.save(middle, file)
    file.seek(0)
    rest, again = steps(objective, 3, 6, logits, torch.load(file))
    assert all(torch.equal(middle[key], value) for key, value in kept.items())  # a state is not changed in place
    assert end.keys() == again.keys() and all(torch.equal(end[key], again[key]) for key in end)
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.advantages, b.advantages) and torch.equal(a.old_log_probs, b.old_log_probs)
    assert any(not torch.equal(whole[0].advantages, later.advantages) for later in whole[1:])


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_trains_alone_as_among_others(name: str) -> None:
    """Also where runs need different numbers of rounds, so that one of them must not shift another's numbers."""
    config = ToyConfig(iterations=8, group_size=4, seeds=4, metrics_every=8)
    among = train(load_recipe(name), TREE, config)
    alone = train(load_recipe(name), TREE, dataclasses.replace(config, seeds=1, first_seed=2))
    torch.testing.assert_close(alone.logits[0], among.logits[2], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(among.logits[1], among.logits[2])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_trains(name: str) -> None:
    for env in ("tree-medium", "key-chain-k3"):
        history = train(load_recipe(name), make_model(env), ToyConfig(iterations=50, group_size=8, seeds=4))
        reward = history.curves["reward"]
        assert torch.isfinite(history.logits).all() and (reward[:, -1] > reward[:, 0] + 0.3).all()


def test_d3s_trains_on_a_bandit() -> None:
    history = train(load_recipe("d3s"), make_model("bandit-spread"), ToyConfig(iterations=50, group_size=8, seeds=4))
    assert torch.isfinite(history.logits).all()
    assert (history.curves["reward"][:, -1] > history.curves["reward"][:, 0]).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_rounds_of_sampling_are_not_stacked(name: str) -> None:
    """A field of the sampler does not show in the losses by which stacking is tried, and must not become a tensor."""
    objective = etr.get(name)
    assert stacked_objective([objective, etr.get(name, eps_high=0.5)], 2) is None
    assert objective.category == "sampling" and check_law("on_policy", objective).outcome == "holds"


def test_padding_is_no_demonstration() -> None:
    batch = tokens([[0.0], [0.0, 0.0]], [1.0, -1.0], rollout_log_probs=torch.zeros(2, 2, dtype=F))
    marked = prepared(etr.get("expert_anchor"), batch.with_columns(given=torch.tensor([2, 1])))
    assert marked.columns["demonstrated"].tolist() == [[1.0, 0.0], [1.0, 0.0]]
