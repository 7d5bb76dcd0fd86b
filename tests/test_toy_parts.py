"""Parts of the toy trainer: policies, optimisers, compiled updates, stacked settings, several recipes at once."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr import exact
from etr.errors import InputError
from etr.objectives.grpo import GRPO
from etr.recipe import OptimizerSettings, Recipe, load_recipe
from etr.toy.config import ToyConfig
from etr.toy.inputs import influence
from etr.toy.policies import POLICIES, make_policy
from etr.toy.rollout import rollout, supplies, uniforms
from etr.toy.stack import stacked, stacked_objective
from etr.toy.together import _jobs, train_together
from etr.toy.train import train
from etr.toy.update import Updater, new_learner, stepped
from toy_envs import make_model

SHORT = ToyConfig(iterations=4, group_size=8, seeds=3)
NUMBERS = torch.Generator().manual_seed(0)


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_starts_uniform_and_learns(name: str) -> None:
    model = make_model("tree-easy")
    rows, logits = make_policy(name, model)
    start = logits(torch.zeros(2, rows, 3, dtype=torch.float64))
    assert start.shape == (2, model.prompts, model.states, 3) and start.eq(0).all()
    history = train(load_recipe("grpo"), model, ToyConfig(iterations=25, seeds=6, policy=name))
    gain = history.curves["reward"][:, -1] - model.uniform_value
    assert (gain > 0.02).all()


@pytest.mark.parametrize("env", ["tree-easy", "mod", "bandit"])
def test_policies_by_plain_loops(env: str) -> None:
    """Each logit as its docstring says, prompt by prompt and prefix by prefix."""
    model = make_model(env)
    for name in POLICIES:
        rows, logits = make_policy(name, model)
        theta = torch.randn(1, rows, model.vocab_size, generator=NUMBERS, dtype=torch.float64)
        table = logits(theta)[0]
        for prompt in range(0, model.prompts, 5):
            for state in range(model.states):
                wanted = _one_row(name, model, theta[0], prompt, state)
                torch.testing.assert_close(table[prompt, state], wanted)


def _one_row(name: str, model: Any, theta: Tensor, prompt: int, state: int) -> Tensor:
    if name == "prompt":
        return theta[prompt]
    if name == "linear" and model.prompt_tokens is None:
        return theta[prompt] + theta[model.prompts + state]
    if name == "linear":
        width = int(model.prompt_tokens.max()) + 1
        tokens = model.prompt_tokens[prompt].tolist()
        about = sum(theta[place * width + token] for place, token in enumerate(tokens))
        return about + theta[len(tokens) * width + state]
    row = theta[prompt * model.states + state]
    return row + theta[-1] if name == "shared-bias" else row


def test_an_unknown_policy_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'linear'"):
        train(load_recipe("grpo"), make_model("bandit"), dataclasses.replace(SHORT, policy="linaer"))


# Optimisers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_steps_are_those_of_torch_optim(method: str) -> None:
    start = torch.randn(2, 3, 4, generator=NUMBERS, dtype=torch.float64)
    theirs = start.clone().requires_grad_()
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[method]
    optimizer = kind([theirs], lr=0.05)
    learner = new_learner(start)
    for _ in range(12):
        gradient = torch.randn(2, 3, 4, generator=NUMBERS, dtype=torch.float64)
        theirs.grad = gradient.clone()
        optimizer.step()
        learner = stepped(learner, gradient, OptimizerSettings(method=method, lr=0.05))
    torch.testing.assert_close(learner.parameters, theirs.detach(), rtol=1e-12, atol=1e-12)


def test_the_method_is_honoured_and_checked() -> None:
    model = make_model("bandit")
    adam, sgd = (train(load_recipe("grpo", {"optimizer.method": m}), model, SHORT).logits for m in ("adam", "sgd"))
    assert not torch.allclose(adam, sgd)
    with pytest.raises(InputError, match="did you mean 'adam'"):
        load_recipe("grpo", {"optimizer.method": "adm"})


# What a toy run supplies ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nosy(GRPO):
    """Needs everything, and looks at it."""

    wanted: str = ""

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(self.wanted.split())


@pytest.mark.parametrize(
    ("env", "extra"),
    [("tree-easy", ""), ("multi-mode", "clusters"), ("two-stage", "turns"), ("multi-reward", "components")],
)
def test_extra_inputs_are_exact(env: str, extra: str) -> None:
    model = make_model(env)
    wanted = f"entropy full_log_probs values ref_log_probs rollout_log_probs {extra}"
    assert set(wanted.split()) <= set(supplies(model))
    recipe = Recipe("nosy", Nosy(wanted=wanted))
    logits = torch.randn(2, model.prompts, model.states, model.vocab_size, generator=NUMBERS, dtype=torch.float64)
    draw = next(uniforms(range(2), (model.prompts, 4, model.horizon + model.noise_size)))
    batch, index = rollout(recipe, model, logits, draw)
    tokens, states = index % model.vocab_size, index // model.vocab_size
    table = logits.log_softmax(-1)
    value = exact.action_values(logits, model)
    for run, prompt, member in [(0, 0, 0), (1, model.prompts - 1, 3), (0, 1, 2)]:
        row = prompt * 4 + member
        for t in range(model.horizon):
            full = table[run, prompt, states[run, prompt, member, t]]
            assert batch.full_log_probs is not None and batch.entropy is not None and batch.values is not None
            torch.testing.assert_close(batch.full_log_probs[run, row, t], full)
            assert batch.entropy[run, row, t].item() == pytest.approx(-sum(p.exp() * p for p in full).item())
            q = value[run, prompt, states[run, prompt, member, t]]
            assert batch.values[run, row, t].item() == pytest.approx((full.exp() * q).sum().item())
        sequence = tokens[run, prompt, member]
        if extra == "clusters":
            assert batch.clusters is not None and model.clusters is not None
            assert batch.clusters[run, row] == model.clusters[prompt, model.sequence_index(sequence)]
        if extra == "turns":
            assert batch.turns is not None and batch.turns[run, row].tolist() == list(model.turns)
        if extra == "components":
            assert batch.components is not None and batch.components.shape[-1] == model.noise_size
            assert torch.isin(batch.components[run, row], torch.tensor([0.0, 1.0]).double()).all()


def test_the_gradient_flows_through_current_columns_only() -> None:
    """An entropy bonus in the objective moves the policy; the critic and the reference do not carry a gradient."""
    model = make_model("tree-easy")
    recipe = Recipe("nosy", Nosy(wanted="entropy full_log_probs values"))
    logits = torch.randn(2, model.prompts, model.states, 3, generator=NUMBERS, dtype=torch.float64)
    batch, index = rollout(recipe, model, logits, next(uniforms(range(2), (model.prompts, 4, 4))))
    leaf = logits.clone().requires_grad_()
    updater = Updater(recipe, lambda table: table, [slice(0, 32)], recipe.objective.needs)
    seen = updater.current(leaf, batch.clean(), index).clean()
    assert seen.entropy is not None and seen.full_log_probs is not None and seen.values is not None
    assert seen.entropy.requires_grad and seen.full_log_probs.requires_grad and not seen.values.requires_grad
    (gradient,) = torch.autograd.grad(seen.entropy.sum(), leaf)
    assert gradient.abs().sum() > 0


def test_an_environment_without_an_input_refuses_the_objective() -> None:
    with pytest.raises(InputError, match="rewards that are 0 or 1"):
        train(Recipe("nosy", Nosy(wanted="binary_rewards")), make_model("multi-reward"), SHORT)


def test_what_an_environment_does_not_tell_apart_is_one() -> None:
    """Without turns an answer is one turn, without clusters an answer of its own, without components one verdict."""
    recipe, model = Recipe("nosy", Nosy(wanted="turns clusters components rewards")), make_model("tree-easy")
    logits = torch.zeros(1, model.prompts, model.states, 3, dtype=torch.float64)
    batch, index = rollout(recipe, model, logits, next(uniforms(range(1), (model.prompts, 4, 4))))
    assert batch.turns is not None and (batch.turns == 0).all()
    assert batch.clusters is not None and batch.components is not None and batch.rewards is not None
    assert torch.equal(batch.clusters, model.sequence_index(index % 3).flatten(-2))
    assert torch.equal(batch.components[..., 0], batch.rewards)


def test_influence_is_the_surprise_of_an_answer_when_a_token_is_drawn_anew() -> None:
    """By enumeration: replace the token by each of the others, and add up the policy's chances of the same answer."""
    model = make_model("multi-mode")
    logits = torch.randn(2, model.prompts, model.states, model.vocab_size, generator=NUMBERS, dtype=torch.float64)
    tokens = model.sample(logits, next(uniforms(range(2), (model.prompts, 3, model.horizon))))
    found = influence(logits, model, tokens)
    answers, states, chances = model.answers(tokens), model.prefix_states(tokens), logits.softmax(-1)
    for run, prompt, member in [(0, 0, 0), (1, 0, 2)]:
        for t in range(model.horizon):
            same = 0.0
            for token in range(model.vocab_size):
                other = tokens.clone()
                other[run, prompt, member, t] = token
                if model.answers(other)[run, prompt, member] == answers[run, prompt, member]:
                    same += chances[run, prompt, states[run, prompt, member, t], token].item()
            assert found[run, prompt, member, t].item() == pytest.approx(-math.log(same), abs=1e-12)
    assert (found == 0).any() and (found > 0).any()


# Settings as a run dimension ------------------------------------------------------------------------------------------


def test_settings_stacked_in_the_run_dimension_are_the_separate_runs() -> None:
    model = make_model("bandit")
    cells = [{"micro": m, "eps_high": e, "optimizer.lr": lr} for m in (0.0, 0.9) for e, lr in ((0.2, 0.1), (0.4, 0.03))]
    recipes = [load_recipe("etr", cell) for cell in cells]
    assert [job.numbers for job in _jobs(recipes, SHORT)] == [(0, 1, 2, 3)]
    together = train_together(recipes, model, SHORT)
    for recipe, history in zip(recipes, together, strict=True):
        alone = train(recipe, model, SHORT)
        torch.testing.assert_close(history.logits, alone.logits, rtol=1e-12, atol=1e-12)
        assert history.steps == alone.steps and history.curves.keys() == alone.curves.keys()
        for key, curve in history.curves.items():
            torch.testing.assert_close(curve, alone.curves[key], rtol=1e-9, atol=1e-9, equal_nan=True)
        torch.testing.assert_close(history.width, alone.width, equal_nan=True)
    assert not torch.allclose(together[0].logits, together[1].logits)


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_number_of_every_objective_is_stacked_rightly_or_not_at_all(name: str) -> None:
    objective = etr.get(name)
    for field in dataclasses.fields(objective):
        value = getattr(objective, field.name)
        if isinstance(value, float):
            other = dataclasses.replace(objective, **{field.name: 0.9 * value + 0.01})
            together = stacked_objective([objective, other], 2)
            if name in ("grpo", "etr", "etr_proportional") and field.name != "beta":  # which objectives branch on
                assert together is not None, field.name


@dataclass(frozen=True)
class Branching(GRPO):
    """Wrong when stacked, without an error: it looks at the first run only."""

    care: float = 0.5

    def region(self, batch: Any, log_ratio: Tensor) -> Any:
        first = float(torch.as_tensor(self.care).flatten()[0])
        return etr.regions.fixed(first * self.eps_low, self.eps_high, log_ratio)


@dataclass(frozen=True)
class Scaled(GRPO):
    """A field of the advantage: a tensor `[R, 1, 1]` does not fit rewards `[R, B]`."""

    care: float = 0.5

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return super().advantage(rewards, group_ids) * self.care


def test_a_field_of_the_advantage_is_not_stacked() -> None:
    assert stacked_objective([Scaled(care=0.1), Scaled(care=0.9)], 2) is None
    recipes = [Recipe(f"care {care}", Scaled(care=care)) for care in (0.1, 0.9)]
    for recipe, history in zip(recipes, train_together(recipes, make_model("bandit"), SHORT), strict=True):
        torch.testing.assert_close(history.logits, train(recipe, make_model("bandit"), SHORT).logits)


def test_what_would_be_wrong_is_not_stacked() -> None:
    assert stacked_objective([Branching(care=0.1), Branching(care=0.9)], 2) is None
    assert stacked_objective([etr.get("grpo"), etr.get("etr")], 2) is None
    assert stacked_objective([etr.get("grpo"), etr.get("grpo", aggregation="token-mean")], 2) is None
    assert stacked([load_recipe("grpo"), load_recipe("grpo", {"optimizer.updates": 2})], 2) is None


def test_one_failing_recipe_ends_the_others() -> None:
    with pytest.raises(InputError, match="right answers"):
        train_together([load_recipe("grpo"), Recipe("nosy", Nosy(wanted="hints"))], make_model("bandit"), SHORT)


def test_settings_are_checked_before_they_are_used() -> None:
    with pytest.raises(InputError, match="seeds is 0"):
        train_together([load_recipe("grpo")], make_model("bandit"), dataclasses.replace(SHORT, seeds=0))


def test_finished_recipes_are_handed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is handed over before the second begins, which then fails."""
    monkeypatch.setattr("etr.toy.workers.cores", lambda: 1)
    given: list[int] = []

    def done(number: int, history: Any) -> None:
        given.append(number)
        assert history.steps[-1] == SHORT.iterations

    with pytest.raises(InputError, match="right answers"):
        recipes = [load_recipe("grpo"), Recipe("nosy", Nosy(wanted="hints"))]
        train_together(recipes, make_model("bandit"), SHORT, done=done)
    assert given == [0]
