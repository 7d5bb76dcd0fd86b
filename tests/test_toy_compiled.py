"""Compiled toys and their scores: the same numbers as without a compiler, or a warning."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr.groups import laid_out
from etr.recipe import load_recipe
from etr.toy import compiled as compiling
from etr.toy.config import ToyConfig
from etr.toy.rollout import Scorer
from etr.toy.train import train
from toy_envs import make_model

SHORT = ToyConfig(iterations=4, group_size=8, seeds=3)
NUMBERS = torch.Generator().manual_seed(0)


class Plus:
    """A function with a constant of its own, like an update with its recipe."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.number


@pytest.mark.slow
@pytest.mark.parametrize("name", ["etr", "grpo_wide"])
def test_a_compiled_run_is_the_same_run(name: str) -> None:
    model = make_model("bandit")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # "goes on uncompiled" would make this test empty
        fast = train(load_recipe(name), model, dataclasses.replace(SHORT, compile=True))
    plain = train(load_recipe(name), model, SHORT)
    torch.testing.assert_close(fast.logits, plain.logits, rtol=1e-9, atol=1e-9)
    single = train(load_recipe(name), model, dataclasses.replace(SHORT, dtype="float32"))
    assert single.logits.dtype == torch.float32


@pytest.mark.slow
def test_many_functions_of_a_process_can_be_compiled() -> None:
    """More than the eight compilations that torch allows all of them together unless told otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for number in range(10):
            fast = compiling.compiled(Plus(number))
            assert fast(torch.zeros(3)).eq(number).all()


def test_what_cannot_be_compiled_runs_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: Any, **options: Any) -> Any:
        def run(*args: Any) -> Any:
            raise RuntimeError("no C++ compiler here\nand a long traceback")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.warns(UserWarning, match="goes on uncompiled: no C\\+\\+ compiler here$"):
        run = compiling.compiled(lambda x: x + 1)
        assert run(torch.ones(())) == 2
    assert run(torch.zeros(())) == 1  # told once


@pytest.mark.parametrize("estimator", sorted(etr.advantages.ESTIMATORS))
def test_regular_groups_agree_with_scattered_ones(estimator: str) -> None:
    rewards = torch.rand(3, 24, generator=NUMBERS, dtype=torch.float64)
    rewards[:, 4:8] = 0.1  # a dead group whose mean is rounded
    ids = torch.arange(6).repeat_interleave(4)
    order = torch.randperm(24, generator=NUMBERS)
    back = order.argsort()
    estimate = etr.advantages.get_estimator(estimator)
    torch.testing.assert_close(estimate(rewards, ids), estimate(rewards[:, order], ids[order])[:, back])
    plain, mixed = etr.group_stats(rewards, ids), etr.group_stats(rewards[:, order], ids[order])
    for name, column in vars(plain).items():
        torch.testing.assert_close(column, getattr(mixed, name)[:, back])
    assert plain.var[:, 4:8].eq(0).all()


def test_ids_that_carry_their_layout_are_the_same_ids() -> None:
    ids = laid_out(6, 4)
    assert torch.equal(ids, torch.arange(6).repeat_interleave(4))
    rewards = torch.rand(3, 24, generator=NUMBERS, dtype=torch.float64)
    for name, column in vars(etr.group_stats(rewards, ids)).items():
        assert torch.equal(column, getattr(etr.group_stats(rewards, ids.clone()), name))
    order = torch.randperm(24, generator=NUMBERS)
    moved = etr.group_stats(rewards[:, order], ids[order])  # what is cut from them makes no promise
    assert torch.equal(moved.size, torch.full_like(rewards, 4.0))
    torch.testing.assert_close(moved.mean, etr.group_stats(rewards, ids).mean[:, order])


@pytest.mark.slow
@pytest.mark.parametrize("estimator", sorted(etr.advantages.ESTIMATORS))
def test_compiled_scores_are_the_same(estimator: str) -> None:
    """Also for another group size, which a compiler must notice though no shape says it."""
    scorer = Scorer(load_recipe("grpo", {"advantage": estimator}))
    fast = torch.compile(scorer, fullgraph=True, dynamic=False)
    rewards = (torch.rand(5, 24, generator=NUMBERS, dtype=torch.float64) < 0.4).double()
    rewards[:, 4:8] = 1.0
    for ids in (laid_out(6, 4), laid_out(3, 8)):
        (advantages, group), (want, stats) = fast(rewards, ids), scorer(rewards, ids)
        torch.testing.assert_close(advantages, want, rtol=1e-12, atol=1e-12)
        for name, column in vars(stats).items():
            torch.testing.assert_close(getattr(group, name), column, rtol=1e-12, atol=1e-15)
