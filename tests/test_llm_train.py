"""Single steps of the trainer: what an update is, what is measured of it, and what the engine is trusted with."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import pytest
import torch
from llm_runs import CONFIG, recipe, timeless, trainer

import etr
from etr.errors import InputError
from etr.llm.models import load_model
from etr.llm.optimizers import make_optimizer
from etr.llm.rollout import TransformersEngine
from etr.objectives.grpo import GRPO
from etr.recipe import OptimizerSettings, Recipe


@dataclass(frozen=True)
class Separate(GRPO):
    """GRPO for a trainer that must take a pass for the old policy's columns before the first update."""

    @property
    def reads_policy(self) -> bool:
        return True


@pytest.mark.parametrize("objective", [GRPO, Separate])
def test_a_policy_that_does_not_move_stays_on_policy(objective: type[GRPO]) -> None:
    """All passes see the same arithmetic: the ratio of the second update is exactly 1 if the first moved nothing."""
    settings = OptimizerSettings(lr=0.0, updates=2, micro_batches=3)
    metrics = trainer(Recipe("grpo", objective(), optimizer=settings), prompts=8, group_size=8).step(1)
    assert metrics["policy/ratio"] == 1.0 and metrics["kl"] == 0.0 and not metrics["zero_grad_frac"] > 0


def test_the_first_update_supplies_the_old_log_probs_of_a_pass_before_it() -> None:
    """Same weights and metrics to the bit, with one pass less a step."""
    settings = OptimizerSettings(lr=3e-3, updates=2, micro_batches=3)
    size = {"prompts": 8, "group_size": 8}
    runs = [trainer(Recipe("grpo", objective(), optimizer=settings), **size) for objective in (GRPO, Separate)]
    passes = []
    for run_ in runs:
        columns, counted = run_.policy.columns, []
        object.__setattr__(run_.policy, "columns", lambda *a, _f=columns, _n=counted: _n.append(1) or _f(*a))
        metrics = [run_.step(step) for step in (1, 2)]
        assert all(row["grad_norm"] > 0 and row["kl"] > 0 for row in metrics)
        passes.append((len(counted), str(timeless(metrics))))  # as text, in which NaN equals NaN
    (fewer, one), (more, two) = passes
    assert more - fewer == 2 * 3  # steps x micro-batches
    assert one == two
    for a, b in zip(*(run_.language_model.model.parameters() for run_ in runs), strict=True):
        assert torch.equal(a, b)


def test_sgd_steps_along_the_gradient_and_adam_by_its_sign() -> None:
    """The first step on one weight with gradient g: lr·g for SGD, lr·sign(g) for Adam (up to its 1e-8)."""
    for method, expected in (("sgd", -0.25 * 0.5), ("adam", -0.25)):
        language_model = load_model("tiny-random")
        optimizer = make_optimizer(OptimizerSettings(method, 0.25), language_model)
        weight = next(language_model.model.parameters())
        before = weight[0, 0].item()
        weight.grad = torch.full_like(weight, 0.5)
        optimizer.step()
        assert weight[0, 0].item() - before == pytest.approx(expected, rel=1e-5)


def test_each_model_has_its_own_default_rate_and_sgd_has_none() -> None:
    tiny = load_model("tiny-random")
    steps = []
    for lm in (tiny, replace(load_model("tiny-random"), name="toy-llama")):
        weight = next(lm.model.parameters())
        before = weight[0, 0].item()
        optimizer = make_optimizer(OptimizerSettings(), lm)
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        steps.append(before - weight[0, 0].item())
    assert steps == pytest.approx([5e-6, 3e-4], rel=1e-2)  # Adam's first step is the rate
    with pytest.raises(InputError, match=r"optimizer.method sgd has no learning rate here; set optimizer.lr"):
        make_optimizer(OptimizerSettings("sgd"), tiny)


def test_the_observatory_reads_the_whole_update() -> None:
    """Before the only update nothing has moved yet, so what is read here must come from after it."""
    settings = {"optimizer.updates": 1, "optimizer.lr": 1e-2, "optimizer.micro_batches": 3}
    run_ = trainer(recipe("grpo", **settings), prompts=8, group_size=8)
    collected = run_.collector.collect(1)
    rollout, batch = collected.rollout, run_.to_batch(collected)
    batch, *_ = run_.update(rollout, batch, 1)
    found = run_.observe(collected, batch, 1)
    with torch.no_grad():
        new = run_.policy.log_probs(rollout, slice(None))[0].double()
    total, ratios, advantages = 0.0, [], batch.advantages.tolist()
    inside = outside = 0
    assert batch.entropy is not None
    for row, tokens in enumerate(rollout.response_mask.tolist()):
        for place, kept in enumerate(tokens):
            if kept:
                old, entropy = batch.old_log_probs[row, place].item(), batch.entropy[row, place].item()
                ratio = math.exp(new[row, place].item() - old)
                ratios.append(ratio)
                total += -ratio * new[row, place].item() + old + (1 - entropy) * (ratio - 1)
                if advantages[row] != 0:
                    inside, outside = inside + (0.8 <= ratio <= 1.2), outside + (not 0.8 <= ratio <= 1.2)
    assert abs(total) > 1e-3 and outside > 0
    assert found["entropy/change"] == pytest.approx(total / len(ratios), rel=1e-3)
    assert found["region/inside"] == pytest.approx(inside / (inside + outside))
    share = sum(ratios) ** 2 / (len(ratios) * sum(r * r for r in ratios))
    assert found["policy/effective_share"] == pytest.approx(share, rel=1e-4)
    cells = [found[f"entropy/change_{sign}"] for sign in ("pos", "neg", "zero")]
    assert sum(cells) == pytest.approx(found["entropy/change"], rel=1e-6)


def test_signal_and_noise_of_the_gradient_come_from_whole_groups() -> None:
    """Two micro-batches of two groups: |g_1|² and |g|² by autograd, at the policy before the first of two updates."""
    settings = {"optimizer.updates": 2, "optimizer.lr": 1e-2, "optimizer.micro_batches": 2}
    run_ = trainer(recipe("grpo", **settings))
    rewards = torch.arange(16.0).remainder(3).eq(0).float()  # every group has signal
    collected = replace(run_.collector.collect(1), rewards=rewards, shaped=rewards)
    rollout, batch = collected.rollout, run_.to_batch(collected)
    parameters, objective = list(run_.language_model.model.parameters()), run_.recipe.objective
    squares = []
    for rows, scale in ((slice(0, 8), 2), (slice(0, 16), 1)):
        part = replace(batch.rows(rows), log_probs=run_.policy.log_probs(rollout, rows)[0])
        loss = scale * etr.policy_loss(objective, part, objective.denominator(batch.response_mask)).loss
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        squares.append(sum(float(g.double().square().sum()) for g in found if g is not None))
    _, sums, _ = run_.update(rollout, batch, 1)
    one, whole = squares
    assert sums["gradient/signal"].value.item() == pytest.approx(2 * whole - one, rel=1e-3, abs=1e-3 * one)
    assert sums["gradient/noise"].value.item() == pytest.approx(one - whole, rel=1e-3, abs=1e-3 * one)


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_pieces_that_share_a_group_or_differ_tell_no_signal(parts: int) -> None:
    metrics = trainer(recipe("grpo", **{"optimizer.updates": 1, "optimizer.micro_batches": parts})).step(1)
    assert math.isnan(metrics["gradient/signal"]) and math.isnan(metrics["gradient/noise"])


def test_a_diverged_model_is_one_sentence() -> None:
    run_ = trainer()
    with torch.no_grad():
        next(run_.language_model.model.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match="probabilities that are not finite, so nothing can be sampled; resume"):
        run_.step(1)


def test_a_kl_term_holds_the_policy_at_its_start() -> None:
    """The penalty of the first update is 0 (π = π_ref); with it later ones stay nearer to the start than without."""
    moved = []
    for beta in (0.0, 30.0):
        run_ = trainer(recipe("grpo", beta=beta, **{"optimizer.lr": 1e-2}))
        start = [p.detach().clone() for p in run_.language_model.model.parameters()]
        for step in range(1, 5):
            run_.step(step)
        now = [p.detach() for p in run_.language_model.model.parameters()]
        moved.append(sum(float((a - b).square().sum()) for a, b in zip(now, start, strict=True)))
        if run_.reference is not None:
            assert all(
                torch.equal(a, b) for a, b in zip(run_.reference.language_model.model.parameters(), start, strict=True)
            )
    assert moved[1] < 0.9 * moved[0]


def test_an_entropy_bonus_raises_entropy_through_its_gradient() -> None:
    @dataclass(frozen=True)
    class Bonus(GRPO):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"entropy"})

        def surrogate(self, batch: etr.Batch, log_ratio: torch.Tensor, region: etr.Region) -> torch.Tensor:
            return torch.zeros_like(log_ratio)

        def regularizer(self, batch: etr.Batch) -> torch.Tensor:
            assert batch.entropy is not None
            return -batch.entropy

    settings = OptimizerSettings(lr=1e-2, updates=4)
    metrics = [m for run_ in [trainer(Recipe("bonus", Bonus(), optimizer=settings))] for m in map(run_.step, (1, 2, 3))]
    assert metrics[0]["grad_norm"] > 0
    assert all(m["entropy/change"] > 0 for m in metrics)


def test_ids_that_no_engine_samples_have_no_probability_in_the_trainer_either() -> None:
    """A head with more rows than the tokenizer has tokens: both sides normalise over the tokens alone, so r = 1."""
    run_ = trainer(recipe(**{"optimizer.updates": 1, "optimizer.lr": 0.0}))
    model = run_.language_model.model
    tokens = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(tokens + 7, mean_resizing=False)
    with torch.no_grad():
        model.get_output_embeddings().weight[tokens:] = 5.0
    run_.policy = replace(run_.policy)
    metrics = run_.step(1)
    assert run_.policy.vocabulary == tokens and metrics["mismatch/max"] < 1e-5
    object.__setattr__(run_.policy, "vocabulary", tokens + 7)
    assert run_.step(2)["mismatch/max"] > 1e-3


@pytest.mark.parametrize(("name", "parts"), [("grpo", 16), ("real", 4), ("m2po", 1)])
def test_what_looks_at_whole_groups_or_batches_gets_them_whatever_the_budget(name: str, parts: int) -> None:
    """4 groups of 4, and a budget of one token: rows one by one, groups, or everything."""
    run_ = trainer(recipe(name), micro_batch_tokens=1)
    assert len(run_.own_parts(run_.collector.collect(1).rollout)) == parts
    assert math.isfinite(run_.step(1)["kl"])


@dataclass
class Frozen(TransformersEngine):
    """An engine with a copy of the first weights, which takes every push for done."""

    name: str = "frozen"


def test_an_engine_that_never_gets_new_weights_stops_the_run_at_its_first_step() -> None:
    run_ = trainer(recipe("dapo", **{"optimizer.lr": 1e-3}), prompts=8, group_size=8)
    model = copy.deepcopy(run_.language_model.model)
    run_.collector.engine = Frozen(replace(run_.language_model, model=model), CONFIG.max_new_tokens)
    run_.begin(0)
    with pytest.raises(InputError, match=r"'frozen' after step 1 .*log-prob -\d.* where the trainer has -\d"):
        run_.step(1)


def test_an_engine_with_another_runs_weights_is_found_before_the_first_sample() -> None:
    run_ = trainer()
    model = copy.deepcopy(run_.language_model.model)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    run_.collector.engine = Frozen(replace(run_.language_model, model=model), CONFIG.max_new_tokens)
    with pytest.raises(InputError, match=r"'frozen' after step 0 .* does not sample with the trainer's weights"):
        run_.begin(0)
