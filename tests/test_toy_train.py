"""The toy trainer: independent seeds, exact metrics, micro-batches that change nothing, and learning."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean

import pytest
import torch
from batches import PLAIN
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import etr
from etr import exact
from etr.recipe import load_recipe
from etr.toy.recorder import SUCCESS_EDGES, History
from etr.toy.rollout import rollout, taken_log_probs, uniforms
from etr.toy.train import ToyConfig, train
from etr.update import add_gradients, split
from toy_envs import make_model

SHORT = ToyConfig(iterations=3, group_size=8, seeds=8)
RECIPES = [("grpo", {"beta": 0.1}), ("etr", {"normalize_budget": True}), ("grpo_wide", {}), ("gspo", {})]
ENVS = ["bandit-spread", "tree-easy"]


def same(a: Tensor, b: Tensor) -> bool:
    """Bit-equal, NaN in the same places."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def same_run(a: History, b: History) -> bool:
    curves = all(same(a.curves[name], b.curves[name]) for name in a.curves)
    return curves and a.steps == b.steps and same(a.width, b.width) and same(a.logits, b.logits)


def one_seed(history: History, seed: int) -> History:
    curves = {name: curve[seed : seed + 1] for name, curve in history.curves.items()}
    return History(history.steps, curves, history.width[seed : seed + 1], history.logits[seed : seed + 1])


@pytest.mark.parametrize(("name", "fields"), RECIPES)
@pytest.mark.parametrize("env", ENVS)
def test_a_seed_does_not_depend_on_its_company(name: str, fields: dict[str, object], env: str) -> None:
    """Seed 3 alone, and among seeds 0 to 7: the same bits, and another run than its neighbour's."""
    recipe, model = load_recipe(name, fields), make_model(env)
    together = train(recipe, model, SHORT)
    alone = train(recipe, model, ToyConfig(iterations=3, group_size=8, seeds=1, first_seed=3))
    assert same_run(one_seed(together, 3), alone)
    assert not same_run(one_seed(together, 3), one_seed(together, 4))
    assert same_run(together, train(recipe, model, SHORT))  # and again


def test_streams_of_uniforms() -> None:
    """Every seed has its own stream, which goes on beyond the block that is drawn at a time."""
    few, many = (uniforms(seeds, (2, 3), block=2) for seeds in (range(5, 6), range(3, 7)))
    draws = [(next(few), next(many)) for _ in range(5)]
    assert all(torch.equal(a[0], b[2]) for a, b in draws)
    together = torch.cat([b.flatten() for _, b in draws])
    assert len(together.unique()) == len(together)
    assert (together >= 0).all() and (together < 1).all()


@pytest.mark.parametrize("parts", [2, 16])
@pytest.mark.parametrize("name", ["etr", "grpo_wide", "dapo", "dr_grpo"])
def test_micro_batches_of_whole_prompts_do_not_change_a_run(name: str, parts: int) -> None:
    model = make_model("bandit-spread")
    runs = [train(load_recipe(name, {"optimizer.micro_batches": n}), model, SHORT) for n in (1, parts)]
    torch.testing.assert_close(runs[0].logits, runs[1].logits, rtol=0, atol=1e-6)
    for key, curve in runs[0].curves.items():
        torch.testing.assert_close(curve, runs[1].curves[key], rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("parts", [3, 7, 64])
@pytest.mark.parametrize("name", PLAIN)
def test_micro_batches_of_any_size_do_not_change_the_gradient(name: str, parts: int) -> None:
    """Groups are cut here. (A whole run would not do: Adam's first steps turn a gradient of 1e-9 into a real step.)"""
    recipe, model = load_recipe(name), make_model("tree-easy")
    logits = torch.randn(2, 8, 13, 3, generator=torch.Generator().manual_seed(0))
    batch, index = rollout(recipe, model, logits, next(uniforms(range(2), (8, 8, 4))))
    batch, _ = recipe.objective.prepare(batch, recipe.objective.init_state((2,), logits.device))
    denominator = recipe.objective.denominator(batch.response_mask)
    moved = (logits + 0.05 * logits.sin()).requires_grad_()
    gradients: list[Tensor] = []
    for n in (1, parts):
        moved.grad = None
        rows: list[int] = []
        add_gradients(
            recipe.objective,
            batch,
            lambda part: {"log_probs": taken_log_probs(moved, index)[..., part, :]},
            denominator,
            split(64, n),
            lambda part, out, rows=rows: rows.append(out.per_token.shape[-2]),  # type: ignore[misc]
        )
        assert len(rows) == n and sum(rows) == 64
        assert moved.grad is not None
        gradients.append(moved.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-8)
    assert gradients[0].abs().max() > 1e-3


@given(st.integers(1, 200), st.data())
def test_split_covers_every_row_once(size: int, data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, size))
    rows = [list(range(size))[part] for part in split(size, parts)]
    assert [i for part in rows for i in part] == list(range(size))
    assert len(rows) == parts and max(map(len, rows)) - min(map(len, rows)) <= 1


@pytest.mark.parametrize("name", PLAIN)
def test_expected_reward_rises(name: str) -> None:
    """In every one of 8 seeds: from 0.42, where arms are 0.4 and one 0.6."""
    model = make_model("bandit-fixed-gap")
    reward = train(load_recipe(name), model, ToyConfig(iterations=30, seeds=8, metrics_every=10)).curves["reward"]
    assert model.uniform_value == pytest.approx(0.42)
    assert (reward[:, -1] > 0.44).all()
    assert (reward[:, -1] > reward[:, 0]).all()


def test_exact_metrics_of_a_bandit_by_hand() -> None:
    """From the logits after 2 and after 3 iterations: reward, entropy and KL(new ‖ old) in plain Python."""
    model, recipe = make_model("bandit-spread"), load_recipe("etr")
    before = train(recipe, model, ToyConfig(iterations=2, group_size=8, seeds=2)).logits.double().softmax(-1)
    history = train(recipe, model, ToyConfig(iterations=3, group_size=8, seeds=2))
    after = history.logits.double().softmax(-1)
    for seed in (0, 1):
        old, new = before[seed, :, 0].tolist(), after[seed, :, 0].tolist()
        reward = fmean(
            sum(p * s for p, s in zip(row, success, strict=True))
            for row, success in zip(new, model.success.tolist(), strict=True)
        )
        entropy = fmean(-sum(p * math.log(p) for p in row) for row in new)
        kl = fmean(sum(p * math.log(p / q) for p, q in zip(a, b, strict=True)) for a, b in zip(new, old, strict=True))
        found = [history.curves[name][seed, -1].item() for name in ("reward", "entropy", "kl_new_to_old")]
        assert found == pytest.approx([reward, entropy, kl], rel=1e-6)


def test_exact_metrics_of_a_tree() -> None:
    model = make_model("tree-easy")
    history = train(load_recipe("grpo"), model, SHORT)
    chance = exact.sequence_log_probs(history.logits, model).exp()  # of every complete answer
    reward = (chance * model.success).sum(-1).mean(-1)
    torch.testing.assert_close(history.curves["reward"][:, -1], reward)
    entropy = -(chance * chance.log()).sum(-1).mean(-1) / 3  # three tokens
    torch.testing.assert_close(history.curves["entropy"][:, -1], entropy)


def test_a_rollout_is_what_the_policy_and_the_verifier_say() -> None:
    model = make_model("tree-easy")
    logits = torch.randn(3, 8, 13, 3, generator=torch.Generator().manual_seed(1))
    draw = next(uniforms(range(3), (8, 4, 4)))
    batch, _ = rollout(load_recipe("grpo", {"beta": 0.1}), model, logits, draw)
    sequences = model.sample(logits, draw[..., :-1])
    chosen = model.sequence_index(sequences)
    whole = exact.sequence_log_probs(logits, model).gather(-1, chosen)
    torch.testing.assert_close(batch.log_probs.sum(-1).double(), whole.flatten(-2))
    assert batch.log_probs.shape == (3, 32, 3) and torch.equal(batch.log_probs, batch.old_log_probs)
    rewards = model.success.gather(-1, chosen.transpose(0, 1).flatten(1)).reshape(8, 3, 4).transpose(0, 1)
    assert batch.group is not None and batch.ref_log_probs is not None
    torch.testing.assert_close(batch.group.mean.reshape(3, 8, 4)[..., 0].double(), rewards.mean(-1))
    torch.testing.assert_close(batch.ref_log_probs, torch.full((3, 32, 3), -math.log(3)))  # the starting policy


@pytest.mark.parametrize(("name", "fields"), RECIPES)
def test_a_run_is_this_plain_loop(name: str, fields: dict[str, object]) -> None:
    """Every update starts from its own gradient, of the whole batch, with ratios to the policy that sampled it."""
    model, recipe = make_model("bandit-spread"), load_recipe(name, fields)
    logits = torch.zeros(8, 16, 1, 10, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.1)
    noise = uniforms(range(8), (16, 8, 2))
    for _ in range(3):
        batch, index = rollout(recipe, model, logits, next(noise))
        for _ in range(4):
            current = dataclasses.replace(batch, log_probs=taken_log_probs(logits, index))
            loss = etr.policy_loss(recipe.objective, current).loss
            (logits.grad,) = torch.autograd.grad(loss.sum(), logits)
            adam.step()
    torch.testing.assert_close(logits.detach(), train(recipe, model, SHORT).logits, rtol=1e-9, atol=1e-9)


def test_settings_of_the_optimiser_are_used() -> None:
    """Adam's first step moves every logit with a gradient by the learning rate."""
    model, config = make_model("bandit-fixed-gap"), ToyConfig(iterations=1, group_size=8, seeds=2)
    for fields, step in (({"optimizer.lr": 0.03}, 0.03), ({}, 0.1)):
        recipe = load_recipe("grpo", {"optimizer.updates": 1, **fields})
        assert train(recipe, model, config).logits.abs().max().item() == pytest.approx(step, rel=1e-3)
    recipe = load_recipe("grpo", {"optimizer.updates": 3})
    assert train(recipe, model, config).logits.abs().max().item() == pytest.approx(0.3, rel=0.1)


def test_a_penalty_holds_the_policy_at_its_start() -> None:
    model, config = make_model("bandit-fixed-gap"), ToyConfig(iterations=20, seeds=4)
    free, held = (train(load_recipe("grpo", {"beta": beta}), model, config).curves for beta in (0.0, 1.0))
    assert (held["entropy"][:, -1] > free["entropy"][:, -1]).all()


def test_measurements_are_taken_when_asked() -> None:
    """Every second iteration and the last one; what is measured does not change, nor does the run."""
    model, recipe = make_model("bandit-spread"), load_recipe("etr")
    seen: list[int] = []
    every = train(recipe, model, ToyConfig(iterations=5, group_size=8, seeds=2), seen.append)
    some = train(recipe, model, ToyConfig(iterations=5, group_size=8, seeds=2, metrics_every=2))
    assert seen == every.steps == [1, 2, 3, 4, 5] and some.steps == [2, 4, 5]
    assert torch.equal(every.logits, some.logits)
    for name, curve in some.curves.items():
        assert same(curve, every.curves[name][:, [1, 3, 4]])


@pytest.mark.parametrize("name", PLAIN)
def test_shares_and_widths_are_in_range(name: str) -> None:
    history = train(load_recipe(name, {"optimizer.updates": 6}), make_model("bandit-spread"), SHORT)
    assert history.width.shape == (8, len(SUCCESS_EDGES) + 1)
    for key in ("region/zero_grad_frac", "region/zero_grad_frac_pos", "region/zero_grad_frac_neg"):
        share = history.curves[key]
        assert share.isfinite().all() and (share >= 0).all() and (share <= 1).all()
    dead = history.curves["group/homogeneous_frac"]
    assert (dead > 0).all() and (dead < 1).all()
    assert (history.curves["kl_new_to_old"] > 0).all()
    dropped = history.curves["region/zero_grad_frac"]
    if name in ("reinforce", "cispo", "gpg", "sapo", "r2vpo", "spo_simple"):
        assert dropped.eq(0).all()  # they never drop a token
    elif name in ("ppo", "grpo", "dr_grpo", "dapo", "gspo", "grpo_wide", "two_sided", "luspo") or name.startswith(
        "etr"
    ):
        assert (dropped[:, -1] > 0).all()  # the others may, at these settings


def test_widths_by_success_rate_of_a_run() -> None:
    """GRPO's is 0.4 wherever there is a mixed group; ETR's is narrower for rare successes than for even ones."""
    model, config = make_model("bandit-spread"), ToyConfig(iterations=5, seeds=8)
    flat, elastic = (train(load_recipe(name), model, config).width for name in ("grpo", "etr"))
    seen = flat[~flat.isnan()]
    torch.testing.assert_close(seen, torch.full_like(seen, 0.4), atol=1e-6, rtol=0)
    assert (elastic[:, 0] < elastic[:, 2]).all()  # p <= 0.1 against 0.3 < p <= 0.5
