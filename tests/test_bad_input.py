"""Bad input to the core: one sentence that says what is wrong, where, and how to mend it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from batches import PLAIN, bandit, rewards_of, tokens
from torch import Tensor

import etr
from etr.advantages import ESTIMATORS, get_estimator
from etr.aggregation import aggregate, global_denominator
from etr.batch import Batch
from etr.errors import FieldError, InputError
from etr.objectives.grpo import GRPO
from etr.recipe import load_recipe
from etr.regularizers import kl
from etr.toy.compare import load_env
from etr.toy.train import ToyConfig, train
from etr.update import split
from toy_envs import make_model


def refused(call: Callable[[], object], *fragments: str, error: type[InputError] = InputError) -> None:
    """`call` raises `error`, in one line that holds all fragments in this order."""
    with pytest.raises(error, match=".*".join(map(re.escape, fragments))) as caught:
        call()
    assert "\n" not in str(caught.value)


def batch_with(**changes: Any) -> Callable[[], Batch]:
    """Two responses of three tokens with every field, some of them replaced."""
    values = torch.zeros(2, 3)
    names = ("log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs", "entropy")
    fields: dict[str, Any] = dict.fromkeys(names, values) | {
        "response_mask": values == 0,
        "advantages": torch.zeros(2),
        "group": etr.GroupStats(torch.zeros(2), torch.zeros(2), torch.full((2,), 2.0)),
        "columns": {"budget": torch.zeros(2)},
    }
    return lambda: Batch(**{**fields, **changes})


# Batches ------------------------------------------------------------------------------------------------------------


def test_the_batch_that_the_cases_spoil_is_good() -> None:
    etr.policy_loss(etr.get("etr"), batch_with()())


TOKEN_FIELDS = ("old_log_probs", "response_mask", "ref_log_probs", "rollout_log_probs", "entropy")


@pytest.mark.parametrize("name", TOKEN_FIELDS)
@pytest.mark.parametrize("shape", [(2, 4), (3, 3), (2,), (1, 2, 3), ()])
def test_token_fields_of_another_shape(name: str, shape: tuple[int, ...]) -> None:
    value = torch.zeros(shape) == 0 if name == "response_mask" else torch.zeros(shape)
    refused(batch_with(**{name: value}), f"{name} has shape {shape} but log_probs (2, 3); give {name} of shape (2, 3)")


@pytest.mark.parametrize("shape", [(3,), (2, 4), (), (1, 2)])
def test_advantages_of_another_shape(shape: tuple[int, ...]) -> None:
    wanted = f"advantages has shape {shape} but log_probs (2, 3); give advantages of shape (2, 3) or (2,)"
    refused(batch_with(advantages=torch.zeros(shape)), wanted)


@pytest.mark.parametrize("name", ["mean", "var", "size"])
def test_group_statistics_of_another_shape(name: str) -> None:
    group = etr.GroupStats(**{n: torch.zeros(3 if n == name else 2) for n in ("mean", "var", "size")})
    refused(batch_with(group=group), f"{name} has shape (3,) but log_probs (2, 3); give {name} of shape (2,)")


def test_columns_of_another_shape() -> None:
    refused(batch_with(columns={"budget": torch.zeros(3, 2)}), "budget has shape (3, 2)", "give budget of shape (2,)")


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0, 2, 3), (3,)])
def test_empty_batches(shape: tuple[int, ...]) -> None:
    refused(
        batch_with(log_probs=torch.zeros(shape)),
        f"empty batch: log_probs have shape {shape}; give at least one response of one token as [..., B, T]",
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_a_mask_that_is_not_bool(dtype: torch.dtype) -> None:
    mask = torch.ones(2, 3, dtype=dtype)
    refused(batch_with(response_mask=mask), f"response_mask has dtype {dtype}; give response_mask.bool()")


@pytest.mark.parametrize("name", ["log_probs", "old_log_probs", "ref_log_probs", "rollout_log_probs", "entropy"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_on_kept_tokens(name: str, bad: float) -> None:
    value = torch.zeros(2, 3)
    value[1, 2] = bad
    value[1, 1] = bad
    batch = batch_with(**{name: value})()
    refused(
        lambda: etr.policy_loss(etr.get("grpo"), batch),
        f"{name} is {bad} at index [1, 1], a kept token (2 such values); "
        "mask these tokens out or mend what computed them",
    )
    padding = torch.tensor([[True, True, True], [True, False, False]])
    assert etr.policy_loss(etr.get("grpo"), dataclasses.replace(batch, response_mask=padding)).loss.isfinite()


def test_advantages_that_are_not_finite() -> None:
    batch = batch_with(advantages=torch.tensor([0.0, torch.nan]))()
    refused(lambda: etr.policy_loss(etr.get("ppo"), batch), "advantages is nan at index [1]")
    whole_row = torch.tensor([[True] * 3, [False] * 3])  # a response of which nothing is kept may hold anything
    assert etr.policy_loss(etr.get("ppo"), dataclasses.replace(batch, response_mask=whole_row)).loss.isfinite()


def test_nothing_kept() -> None:
    message = "response_mask keeps no token; give at least one response token in every run"
    empty = batch_with(response_mask=torch.zeros(2, 3, dtype=torch.bool))()
    for name in PLAIN:
        refused(partial(etr.policy_loss, etr.get(name), empty), message)
    one_run = torch.stack([torch.ones(2, 3), torch.zeros(2, 3)]) > 0
    refused(lambda: global_denominator(one_run, "token-mean"), message)


# Rewards and groups -------------------------------------------------------------------------------------------------

PAIR = torch.tensor([0, 0])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_group_of_one(name: str) -> None:
    rewards, ids = torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 9, 4])
    refused(
        lambda: get_estimator(name)(rewards, ids),
        "the response at index [1] is alone in its group; group-relative advantages need at least two responses "
        "to a prompt (raise group_size)",
    )
    refused(lambda: get_estimator(name)(torch.stack([rewards, rewards]), ids), "the response at index [0, 1] is alone")


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
def test_rewards_that_are_not_finite(bad: str) -> None:
    rewards = torch.tensor([0.0, float(bad)])
    for estimator in ESTIMATORS.values():
        refused(partial(estimator, rewards, PAIR), f"reward at index [1] is {bad}; mend the reward function")
    refused(lambda: etr.group_stats(rewards, PAIR), f"reward {bad} at index [1] is outside [0, 1]; mend the reward")


@pytest.mark.parametrize("bad", [-1.0, -1e-6, 1.5, 100.0])
def test_rewards_outside_their_range(bad: float) -> None:
    refused(
        lambda: etr.group_stats(torch.tensor([[0.0, 1.0], [bad, 1.0]]), PAIR),
        f"reward {bad:g} at index [1, 0] is outside [0, 1]",
        "declare the range with reward_range=(low, high)",
    )
    refused(lambda: etr.group_stats(torch.tensor([3.0, 0.5]), PAIR, (1.0, 3.0)), "reward 0.5", "outside [1, 3]")


GROUPED: list[Callable[[Tensor, Tensor], object]] = [etr.group_stats, *ESTIMATORS.values()]


@pytest.mark.parametrize("function", GROUPED)
def test_rewards_and_ids_that_do_not_fit(function: Callable[[Tensor, Tensor], object]) -> None:
    refused(lambda: function(torch.zeros(0), torch.zeros(0)), "empty batch: rewards have shape (0,); give at least one")
    refused(lambda: function(torch.zeros(()), PAIR), "empty batch: rewards have shape ();")
    for dtype in (torch.int64, torch.bool):
        rewards = torch.zeros(2, dtype=dtype)
        wanted = f"rewards have dtype {dtype}; give single or double precision (rewards.float())"
        refused(partial(function, rewards, PAIR), wanted)
    for shape in [(3,), (1, 2), ()]:
        ids = torch.zeros(shape, dtype=torch.long)
        wanted = f"group_ids have shape {shape} but rewards (2,); give one id per response"
        refused(partial(function, torch.zeros(2), ids), wanted)


# Names and fields ---------------------------------------------------------------------------------------------------


def test_unknown_names() -> None:
    values, mask = torch.zeros(1, 1), torch.ones(1, 1) > 0
    refused(lambda: etr.get("grpoo"), "unknown objective 'grpoo'; did you mean 'grpo'? Valid: ", "dr_grpo", " more")
    refused(lambda: etr.get("zzzzzz"), "unknown objective 'zzzzzz'; Valid: ", ", and ")
    refused(lambda: get_estimator("group_z_score"), "unknown advantage 'group_z_score'; did you mean 'group_zscore'?")
    refused(
        lambda: aggregate(values, mask, "token_mean"), "unknown aggregation 'token_mean'; did you mean 'token-mean'?"
    )
    refused(lambda: aggregate(values, mask, "mean", 1.0), "unknown aggregation 'mean'")
    refused(lambda: kl(values, values, "k4"), "unknown kl kind 'k4'; did you mean", "Valid: k1, k2, k3")  # type: ignore[arg-type]
    refused(
        lambda: load_recipe("ert"), "unknown recipe 'ert'; did you mean 'etr'?", "give a .yaml file, module:Class or "
    )
    refused(lambda: load_env("bandit-spred"), "unknown environment 'bandit-spred'; did you mean 'bandit-spread'?")


def test_unknown_fields_are_type_errors() -> None:
    wanted = "unknown field of objective 'grpo': 'eps_hi'; did you mean 'eps_high'? Valid: aggregation, beta, dual_clip"
    refused(lambda: etr.get("grpo", eps_hi=0.3), wanted, error=FieldError)
    assert issubclass(FieldError, TypeError) and issubclass(FieldError, InputError)


@pytest.mark.parametrize("value", ["0.2", True, None, [0.2], float("nan")])
def test_fields_of_another_type(value: object) -> None:
    refused(lambda: etr.get("grpo", eps_low=value), f"GRPO.eps_low is {value!r}; give a number", error=FieldError)
    if value is not None:
        refused(lambda: etr.get("grpo", dual_clip=value), f"GRPO.dual_clip is {value!r}; give a num", error=FieldError)
    if value is not True:
        wanted = f"ETR.normalize_budget is {value!r}; give true or false"
        refused(lambda: etr.get("etr", normalize_budget=value), wanted, error=FieldError)


@pytest.mark.parametrize(
    ("name", "field", "value", "wanted"),
    [
        ("grpo", "eps_low", -0.1, "GRPO.eps_low is -0.1; give a number from 0 to 1"),
        ("grpo", "eps_low", 1.1, "GRPO.eps_low is 1.1; give a number from 0 to 1"),
        ("dapo", "eps_high", -1, "DAPO.eps_high is -1; give a number from 0 to inf"),
        ("grpo", "beta", -0.04, "GRPO.beta is -0.04; give a number from 0 to inf"),
        ("ppo", "dual_clip", 0.5, "PPO.dual_clip is 0.5; give a number from 1 to inf"),
        ("etr", "micro", -0.5, "ETR.micro is -0.5; give a number from 0 to"),
        ("etr", "macro", -0.5, "ETR.macro is -0.5; give a number from 0 to"),
        ("etr", "eps_min", 2, "ETR.eps_min is 2; give a number from 0 to 1"),
        ("etr_implicit", "eps_max", 1.5, "ETRImplicit.eps_max is 1.5; give a number from 0 to 1"),
        ("dr_grpo", "length", 0, "DrGRPO.length is 0; give a number from 1 to inf"),
    ],
)
def test_fields_out_of_range(name: str, field: str, value: float, wanted: str) -> None:
    refused(lambda: etr.get(name, **{field: value}), wanted, error=FieldError)


def test_an_objective_with_an_unknown_aggregation() -> None:
    refused(
        lambda: etr.get("ppo", aggregation="tokenmean"), "unknown aggregation 'tokenmean'; did you mean 'token-mean'?"
    )


# What an objective needs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OnlyBinary(GRPO):
    """An objective that cannot use partial credit."""

    name = "only_binary"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"binary_rewards"})


def test_rewards_that_must_be_0_or_1() -> None:
    objective = OnlyBinary()
    rewards, ids = rewards_of(1, 2, size=4)
    etr.policy_loss(objective, bandit(objective, rewards, ids))
    partial = bandit(objective, rewards.clamp(max=0.5), ids)
    wanted = "objective 'only_binary' needs rewards that are 0 or 1", "which this batch does not have"
    refused(lambda: etr.policy_loss(objective, partial), *wanted)
    refused(lambda: etr.policy_loss(objective, dataclasses.replace(partial, group=None)), *wanted)


NEEDS: list[tuple[str, dict[str, object], str]] = [
    ("grpo", {"beta": 0.1}, "log-probs of a reference policy (ref_log_probs=...)"),
    ("etr", {}, "group statistics (group=etr.group_stats(rewards, group_ids))"),
    ("etr_proportional", {}, "group statistics"),
    (
        "grpo_wide",
        {"beta": 0.1},
        "group statistics (group=etr.group_stats(rewards, group_ids)); log-probs of a reference",
    ),
]


@pytest.mark.parametrize(("name", "fields", "what"), NEEDS)
def test_inputs_that_are_missing(name: str, fields: dict[str, object], what: str) -> None:
    batch = tokens([[0.1], [0.2]], [1.0, -1.0])
    wanted = f"objective '{name}' needs {what}", "which this batch does not have"
    refused(lambda: etr.policy_loss(etr.get(name, **fields), batch), *wanted)


def test_a_trainer_refuses_at_the_start() -> None:
    @dataclass(frozen=True)
    class NeedsHints(GRPO):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"hints"})

    recipe = etr.Recipe("hungry", NeedsHints())
    wanted = "needs the first tokens of right answers while it samples (etr.samplers), which the toy trainer in this"
    refused(lambda: train(recipe, make_model("bandit-fixed-gap"), ToyConfig(iterations=1)), wanted)


@pytest.mark.parametrize(("name", "fields"), [("etr", {"normalize_budget": True}), ("grpo_wide", {})])
def test_a_micro_batch_of_an_unprepared_batch(name: str, fields: dict[str, object]) -> None:
    objective = etr.get(name, **fields)
    whole = bandit(objective, *rewards_of(1, 2, size=4))
    denominator = objective.denominator(whole.response_mask)
    refused(
        lambda: etr.policy_loss(objective, whole.rows(slice(0, 4)), denominator),
        f"objective '{name}' takes a statistic over the whole batch; call `batch, state = objective.prepare(",
        "before splitting it into micro-batches",
    )


@pytest.mark.parametrize("parts", [0, -1, 5])
def test_more_micro_batches_than_responses(parts: int) -> None:
    wanted = f"optimizer.micro_batches is {parts} but a batch has 4 responses; give 1 to 4"
    refused(lambda: split(4, parts), wanted)
    if parts > 4:
        recipe = load_recipe("grpo", {"optimizer.micro_batches": 300})
        config = ToyConfig(iterations=1, group_size=2, seeds=1)
        wanted = "optimizer.micro_batches is 300 but a batch has 32 responses; give 1 to 32"
        refused(lambda: train(recipe, make_model("bandit-fixed-gap"), config), wanted)


@pytest.mark.parametrize("field", ["iterations", "group_size", "seeds", "metrics_every"])
def test_toy_settings_out_of_range(field: str) -> None:
    least = {"group_size": 2, "metrics_every": 0}.get(field, 1)
    settings: dict[str, Any] = {field: least - 1}
    refused(lambda: ToyConfig(**settings).check(), f"{field} is {least - 1}; give at least {least}")
