"""Every registered objective, at its defaults and at its declared examples, against every law."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import etr
from etr.batch import Batch
from etr.laws import LAWS, check_law, random_batch
from etr.objective import NEEDS
from etr.objectives.grpo import GRPO
from etr.registry import objective_class

CASES = [
    pytest.param(name, fields, id=name if not fields else f"{name}-{dict(fields)}")
    for name in etr.list_objectives()
    for fields in ({}, *objective_class(name).examples)
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("name", "fields"), CASES)
def test_law(name: str, fields: Mapping[str, object], law: str) -> None:
    verdict = check_law(law, etr.get(name, **fields))
    assert verdict.outcome != "broken", f"{name} {law}: {verdict.detail}"


def test_a_random_batch_has_every_input() -> None:
    batch = random_batch(etr.get("grpo"), runs=(2,))
    inputs = {f.name for f in dataclasses.fields(batch)} - {"weights"}  # of the trainer, not of an objective
    assert all(getattr(batch, name) is not None for name in inputs)
    assert batch.full_log_probs is not None and batch.entropy is not None and batch.turns is not None
    chances = batch.full_log_probs.exp()
    torch.testing.assert_close(chances.sum(-1), torch.ones(2, 16, 5).double())
    torch.testing.assert_close(batch.entropy, torch.distributions.Categorical(chances).entropy())
    assert (batch.turns.diff(dim=-1) >= 0).all() and batch.turns.max() > 0
    assert batch.components is not None and set(batch.components.unique().tolist()) == {0.0, 1.0}


def test_an_objective_of_every_input_is_judged_and_not_refused() -> None:
    """It needs everything and uses nothing of it, so every law must hold."""

    @dataclass(frozen=True)
    class Greedy(GRPO):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset(NEEDS)

        def surrogate(self, batch: Batch, log_ratio: Tensor, region: etr.Region) -> Tensor:
            inputs = (batch.full_log_probs, batch.values, batch.turns, batch.clusters, batch.components)
            assert all(value is not None for value in inputs)
            return super().surrogate(batch, log_ratio, region)

    for law in set(LAWS) - {"learns_a_bandit"}:  # it makes its own batches
        assert check_law(law, Greedy()).outcome == "holds"
