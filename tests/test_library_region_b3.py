"""All trust-region methods of the other two files: state that can be saved, training, and bad fields."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

import etr
from etr.errors import FieldError
from etr.laws.base import random_batch, run
from etr.objective import State
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model

NAMES = [
    *("capo", "clip_b", "clip_cov", "clip_v", "dcpo_dynamic", "dhpo", "espo", "hapo", "kl_cov", "mdpo"),
    *("r2vpo", "tppo", "trpa"),
]
STATEFUL: list[tuple[str, dict[str, object]]] = [
    ("r2vpo", {"dual": True}),
    ("dcpo_dynamic", {"prompts": 4}),
    ("mdpo", {"anneal_steps": 5}),
]


@pytest.mark.parametrize(("name", "fields"), STATEFUL)
def test_state_can_be_saved_and_vectorised(name: str, fields: dict[str, object]) -> None:
    objective = etr.get(name, **fields)
    batches = [random_batch(objective, runs=(2, 3), seed=seed) for seed in range(4)]

    def walk(state: State, part: slice, *at: int) -> tuple[State, list[Tensor]]:
        losses = []
        for batch in batches[part]:
            ready, state = objective.prepare(run(batch, *at) if at else batch, state)
            losses.append(etr.policy_loss(objective, ready).loss)
        return state, losses

    start = objective.init_state((2, 3), torch.device("cpu"))
    final, losses = walk(start, slice(4))
    file = io.BytesIO()
    torch.save(walk(start, slice(2))[0], file)
    file.seek(0)
    resumed, rest = walk(torch.load(file), slice(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(rest, losses[2:], strict=True))
    assert final.keys() == resumed.keys() and all(torch.equal(final[key], resumed[key]) for key in final)
    assert any(not torch.equal(final[key], start[key]) for key in final)
    for i, j in ((0, 0), (1, 2)):
        _, own = walk(objective.init_state((), torch.device("cpu")), slice(4), i, j)
        torch.testing.assert_close(torch.stack(own), torch.stack(losses)[:, i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["bandit-spread", "tree-medium"])
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *[(name, {}) for name in NAMES],
        ("dhpo", {"mixing": "entropy"}),
        ("r2vpo", {"dual": True}),
        ("dcpo_dynamic", {"prompts": 16}),
        ("mdpo", {"kind": "tsallis", "anneal_steps": 50}),
    ],
)
def test_it_trains(name: str, fields: dict[str, object], env: str) -> None:
    config = ToyConfig(iterations=50, group_size=8, seeds=4, metrics_every=50)
    model = make_model(env)
    history = train(load_recipe(name, fields), model, config)
    assert history.logits.isfinite().all()
    assert (history.curves["reward"][:, -1] > model.uniform_value + 0.02).all()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("dhpo", {"weight": 2.0}),
        ("dhpo", {"mixing": "mixed"}),
        ("hapo", {"advantage_gain": 1.5}),
        ("dcpo_dynamic", {"prompts": 0}),
        ("mdpo", {"kind": "tsalis"}),
        ("espo", {"share": 1.5}),
        ("tppo", {"window": 0}),
        ("capo", {"step": -1.0}),
        ("clip_v", {"most": 2.0}),
    ],
)
def test_fields_out_of_range_are_refused(name: str, fields: dict[str, object]) -> None:
    with pytest.raises(FieldError, match=next(iter(fields))):
        etr.get(name, **fields)
