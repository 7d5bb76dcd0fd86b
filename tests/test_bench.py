"""The benchmarks compare like with like: the peer learns what the original learns, and a loop does the same work."""

from __future__ import annotations

import pytest
import torch

from etr.bench.jax_peer import peer
from etr.bench.toy import bench_growth, step_loop
from etr.recipe import load_recipe
from etr.toy.train import ToyConfig, train
from toy_envs import make_model
from toy_envs.bandit import Bandit


@pytest.mark.parametrize("invert", [False, True])
def test_the_jax_peer_learns_the_same(invert: bool) -> None:
    """Mean expected reward of 256 runs after 15 iterations, within four standard errors of both."""
    pytest.importorskip("jax", reason="JAX is no dependency; the benchmark leaves its part out too")
    model, runs, iterations = make_model("bandit"), 256, 15
    run = peer(model.success, runs, iterations, invert)
    assert run is not None
    logits = torch.tensor(run().tolist(), dtype=torch.float64)
    theirs = (logits.softmax(-1) * model.success).sum(-1).mean(-1)
    ours = train(load_recipe("etr"), model, ToyConfig(iterations, seeds=runs)).curves["reward"][:, -1]
    error = ((theirs.var() + ours.var()) / runs).sqrt()
    assert abs(theirs.mean() - ours.mean()) < 4 * error
    assert ours.mean() > model.uniform_value + 0.1


def test_the_step_loop_learns() -> None:
    env = Bandit.from_preset("fixed-gap")
    logits = step_loop(load_recipe("etr"), env, 12)
    reward = (logits[0, :, 0].softmax(-1) * env.model.success).sum(-1).mean()
    assert reward > env.model.uniform_value + 0.01


def test_growth_is_a_row_for_each_size() -> None:
    rows = bench_growth(iterations=1, repeats=1)
    assert [row["doubled"] for row in rows] == ["runs", "prompts", "group"]
    assert all(row["x4"] > 0 and row["x2/x1"] > 0 for row in rows)
