"""What methods that look at whole groups rely on: defaults of a partner, rewards, parts that must not be cut."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from llm_runs import recipe, trainer
from torch import Tensor

import etr
from etr.batch import Batch
from etr.errors import InputError
from etr.laws import random_batch
from etr.loss import prepared
from etr.objectives.dapo import DAPO
from etr.recipe import load_recipe
from etr.registry import objective_class
from etr.shaping import Shaping
from etr.toy.config import ToyConfig
from etr.toy.train import train
from etr.update import check_parts, split
from toy_envs import make_model


@dataclass(frozen=True)
class Halved(Shaping, DAPO):
    """Half the advantage."""

    def shape(self, batch: Batch) -> Tensor:
        return batch.advantages / 2


def test_a_mixin_leaves_the_defaults_of_its_partner() -> None:
    """As the first base it comes before DAPO, whose token-mean and higher bound must stay."""
    assert Halved().aggregation == DAPO().aggregation == "token-mean" and Halved().eps_high == 0.28
    assert [f.name for f in dataclasses.fields(Halved)] == [f.name for f in dataclasses.fields(DAPO)]


def test_shaped_advantages_are_made_once_and_by_their_own_objective() -> None:
    batch = random_batch(Halved())
    once = prepared(Halved(), batch)
    torch.testing.assert_close(once.advantages, batch.advantages / 2)
    assert torch.equal(prepared(Halved(), once).advantages, once.advantages)
    assert not set(etr.get("clip_b").columns) & set(etr.get("clip_v").columns)  # neither takes the other's for its own


def test_a_masked_out_answer_keeps_its_reward() -> None:
    """Three right answers, of which one is masked out: the group is all right, so nothing is learned from it."""
    for name in ("agpo_feedback", "hapo", "passk"):
        objective = etr.get(name)
        batch = random_batch(objective)
        rewards, mask = torch.ones(16, dtype=torch.float64), batch.response_mask.clone()
        rewards[4:] = batch.rewards[4:]  # type: ignore[index]
        mask[0] = False
        ids = torch.arange(16) // 4
        advantages = objective.advantage(rewards, ids)
        whole = dataclasses.replace(
            batch, rewards=rewards, advantages=advantages, response_mask=mask, group=etr.group_stats(rewards, ids)
        )
        kept = prepared(objective, whole).clean()
        assert kept.rewards is not None and kept.rewards[0] == 1.0
        assert (torch.where(mask, kept.token_advantages, 0.0)[:4] == 0).all(), name


def test_methods_that_compare_answers_refuse_parts_that_cut_a_group() -> None:
    """Sixteen answers in groups of four: two parts hold whole groups, three do not."""
    for name in ("real", "adpo"):
        check_parts(etr.get(name), split(16, 2), 4)
        with pytest.raises(
            InputError, match=f"objective '{name}' looks at a whole group at a time, but micro-batches cut"
        ):
            check_parts(etr.get(name), split(16, 3), 4)
    check_parts(etr.get("bapo"), split(16, 1), 4)
    with pytest.raises(InputError, match=r"'bapo' looks at a whole batch at a time, .* give fewer"):
        check_parts(etr.get("bapo"), split(16, 2), 4)
    check_parts(etr.get("grpo"), split(16, 3), 4)


def test_both_trainers_ask() -> None:
    cut = load_recipe("real", {"optimizer.micro_batches": 3})
    with pytest.raises(InputError, match="looks at a whole group at a time"):
        train(cut, make_model("tree-easy"), ToyConfig(iterations=1, seeds=3, group_size=4))
    with pytest.raises(InputError, match="looks at a whole group at a time"):  # before anything is sampled
        trainer(recipe("real", **{"optimizer.micro_batches": 3}))


def test_what_is_not_to_be_divided_breaks_the_splitting_law() -> None:
    """At its defaults, or at settings that show it on the batch of the laws."""
    for name in etr.list_objectives():
        cls = objective_class(name)
        if cls.undivided:
            assert any("splitting_is_exact" in etr.get(name, **fields).exceptions for fields in ({}, *cls.examples))
