"""Hints and resets in the toys: given tokens are kept, completed by the policy and not trained on."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import etr
from etr import exact
from etr.errors import InputError
from etr.objectives.grpo import GRPO
from etr.recipe import Recipe, load_recipe
from etr.samplers import Attempt, Sampler, Start
from etr.toy.rollout import rollout, streams, supplies, taken_log_probs
from etr.toy.train import ToyConfig, train
from toy_envs import ExactModel, make_model

CHAIN = make_model("key-chain-k3")  # 8 prompts, 4 symbols, 3 tokens
SHORT = ToyConfig(iterations=4, group_size=8, seeds=3)


@dataclass(frozen=True)
class Hinted(GRPO):
    """Gives the first `length` tokens of a right answer to every member of a group in which all fail."""

    length: int = 1
    always: bool = False

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is not None and attempt.entropy is None
        if attempt.round:
            return None
        failed = (attempt.rewards == 0).all(-1, keepdim=True) | self.always
        return Start(attempt.hints.unsqueeze(1), torch.where(failed, self.length, 0).expand_as(attempt.given))


@dataclass(frozen=True)
class Branching(GRPO):
    """All but the first member complete the first one's answer from where its entropy is largest (but not token 0)."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"resets", "entropy"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.hints is None and attempt.entropy is not None
        if attempt.round:
            return None
        place = 1 + attempt.entropy[..., :1, 1:].argmax(-1)
        others = torch.arange(attempt.given.shape[-1]) > 0
        return Start(attempt.tokens[..., :1, :], torch.where(others, place, 0))


def random_logits(model: ExactModel, runs: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(runs, model.prompts, model.states, model.vocab_size, generator=rng, dtype=torch.float64)


def drawn(objective: GRPO, logits: Tensor, model: ExactModel, size: int) -> tuple[etr.Batch, Tensor, Tensor]:
    """A rollout, its tokens, and the tokens that the first round alone gives."""
    shape = (model.prompts, size, model.horizon + model.noise_size)
    first, more = streams(range(len(logits)), shape, torch.float64)
    draw = next(first)
    batch, index = rollout(Recipe("own", objective), model, logits, draw, next(more))
    return batch, index % model.vocab_size, model.sample(logits, draw[..., : model.horizon])


def test_success_behind_a_hint_is_the_conditional_probability() -> None:
    """All but the last token given: the uniforms (i + ½)/N find π(last | hint) to within 1/N, without any chance."""
    size, logits = 2000, random_logits(CHAIN, 2)
    grid = ((torch.arange(size) + 0.5) / size).double()[None, None, :, None].expand(2, 8, -1, 4)
    batch, _ = rollout(Recipe("own", Hinted(length=2, always=True)), CHAIN, logits, grid, iter([grid]))
    assert batch.group is not None
    for run, prompt in [(0, 0), (1, 5), (0, 7)]:
        key = CHAIN.solutions[prompt].tolist()
        row = logits[run, prompt, 1 + 4 + 4 * key[0] + key[1]]
        share = batch.group.mean[run, prompt * size].item()
        assert share == pytest.approx(row.softmax(-1)[key[2]].item(), abs=1 / size)


@pytest.mark.parametrize("length", [1, 2])
def test_hinted_answers_by_chance(length: int) -> None:
    """Success of π behind the hint, by adding up sequences; 400 runs, every prompt within 4.5 standard errors."""
    logits = random_logits(CHAIN, 1).expand(400, -1, -1, -1)
    batch, tokens, _ = drawn(Hinted(length=length, always=True), logits, CHAIN, 8)
    assert torch.equal(tokens[..., :length], CHAIN.solutions[:, :length].unsqueeze(1).expand(400, 8, 8, length))
    assert batch.group is not None
    chance = exact.sequence_log_probs(logits[0], CHAIN).exp()
    digits = torch.cartesian_prod(*[torch.arange(4)] * 3)
    for prompt in range(8):
        inside = (digits[:, :length] == CHAIN.solutions[prompt, :length]).all(-1)
        want = ((chance * CHAIN.success)[prompt, inside].sum() / chance[prompt, inside].sum()).item()
        found = batch.group.mean.reshape(400, 8, 8)[:, prompt, 0]
        assert abs(found.mean().item() - want) < 4.5 * (want * (1 - want) / 3200) ** 0.5


def test_given_tokens_are_not_trained_on() -> None:
    logits = random_logits(CHAIN, 4)
    batch, tokens, _ = drawn(Hinted(length=2, always=True), logits, CHAIN, 8)
    assert batch.response_mask.tolist() == [[[False, False, True]] * 64] * 4
    leaf = logits.clone().requires_grad_()
    states = CHAIN.prefix_states(tokens)
    log_probs = taken_log_probs(leaf, states * 4 + tokens)
    loss = etr.policy_loss(Hinted(), dataclasses.replace(batch, log_probs=log_probs)).loss
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient[:, :, :5].eq(0).all() and gradient[:, :, 5:].abs().sum() > 0  # the root and depth 1, then depth 2
    trained = train(Recipe("hinted", Hinted(length=2, always=True)), CHAIN, SHORT).logits
    assert trained[:, :, :5].eq(0).all() and trained[:, :, 5:].abs().sum() > 0


def test_only_groups_that_fail_are_helped() -> None:
    runs = 32
    batch, tokens, alone = drawn(Hinted(length=2), random_logits(CHAIN, runs), CHAIN, 8)
    failed = (CHAIN.success.gather(-1, CHAIN.sequence_index(alone).transpose(0, 1).flatten(1)) == 0).reshape(8, runs, 8)
    hopeless = failed.all(-1).T  # [run, prompt]
    assert 0.1 < hopeless.double().mean() < 0.95
    assert torch.equal(tokens[~hopeless], alone[~hopeless])
    assert torch.equal(
        tokens[hopeless][..., :2], CHAIN.solutions.expand(runs, 8, 3)[hopeless][:, None, :2].expand(-1, 8, 2)
    )
    masked = ~batch.response_mask.reshape(runs, 8, 8, 3)
    assert torch.equal(masked[..., 0], hopeless.unsqueeze(-1).expand(-1, -1, 8)) and not masked[..., 2].any()


def test_helped_groups_draw_new_numbers() -> None:
    """A policy that fails by its last symbol alone: with the numbers of the first round it would surely fail again."""
    logits = torch.zeros(100, 8, 21, 4, dtype=torch.float64)
    for prompt, (first, second, _) in enumerate(CHAIN.solutions.tolist()):
        logits[:, prompt, 0, first] = logits[:, prompt, 1 + first, second] = 30.0
    batch, _, alone = drawn(Hinted(length=2), logits, CHAIN, 4)
    failed = (alone != CHAIN.solutions.unsqueeze(1)).any(-1).all(-1)  # [run, prompt]
    assert batch.group is not None and 200 < failed.sum() < 300  # .75⁴ of 800 are 253
    success = batch.group.mean.reshape(100, 8, 4)[..., 0]
    assert abs(success[failed].mean().item() - 0.25) < 4.5 * (0.25 * 0.75 / 800) ** 0.5


def test_a_group_branches_from_a_sampled_prefix() -> None:
    """On two-stage the branches ask the first member's question and answer it anew, each for itself."""
    model = make_model("two-stage-medium")
    logits = random_logits(model, 32)
    batch, tokens, alone = drawn(Branching(), logits, model, 16)
    assert torch.equal(tokens[..., 0, :], alone[..., 0, :])  # the trunk stays
    assert tokens[..., 0].eq(tokens[..., :1, 0]).all() and batch.response_mask.reshape(32, 8, 16, 2)[..., 0, :].all()
    assert not batch.response_mask.reshape(32, 8, 16, 2)[..., 1:, 0].any() and batch.response_mask[..., 1].all()
    branches = tokens[..., 1:, 1].flatten(-2)  # of all prompts, against π(· | question)
    rows = logits.softmax(-1).gather(-2, (1 + tokens[..., :1, 0]).unsqueeze(-1).expand(-1, -1, 1, 6)).squeeze(-2)
    want = rows.mean((0, 1))
    counts = torch.bincount(branches.flatten(), minlength=6) / branches.numel()
    assert (counts - want).abs().max() < 4.5 * (0.25 / branches.numel()) ** 0.5


def test_training_with_hints() -> None:
    """Where GRPO sees next to no success in its first batches, hints teach; and a seed's run is its own."""
    model, config = make_model("key-chain-k4"), ToyConfig(iterations=16, group_size=8, seeds=6, metrics_every=16)
    recipe = Recipe("hinted", Hinted(length=3))
    history = train(recipe, model, config)
    plain = train(load_recipe("grpo"), model, config)
    assert (history.curves["reward"][:, -1] - plain.curves["reward"][:, -1]).mean() > 0.2
    alone = train(recipe, model, dataclasses.replace(config, seeds=1, first_seed=4))
    assert torch.equal(alone.logits[0], history.logits[4])
    twice = train(recipe, model, config, copies=2)
    assert torch.equal(twice.logits[:6], history.logits) and torch.equal(twice.logits[6:], history.logits)


@pytest.mark.slow
def test_a_compiled_run_with_hints_is_the_same_run() -> None:
    recipe = Recipe("hinted", Hinted(length=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fast = train(recipe, CHAIN, dataclasses.replace(SHORT, compile=True))
    torch.testing.assert_close(fast.logits, train(recipe, CHAIN, SHORT).logits, rtol=1e-9, atol=1e-9)


# What a start can ask for ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scripted(GRPO):
    """Asks once for what the test says: the function gets the attempt."""

    script: Any = None

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"hints", "resets", "rollout_log_probs", "tokens"}

    def start(self, attempt: Attempt) -> Start | None:
        return self.script(attempt) if attempt.round == 0 else None


def test_answers_drawn_anew_from_the_beginning() -> None:
    logits, some = random_logits(CHAIN, 40), torch.arange(8) < 3

    def script(attempt: Attempt) -> Start:
        return Start(attempt.tokens, torch.zeros_like(attempt.given), anew=some.expand_as(attempt.given))

    batch, tokens, alone = drawn(Scripted(script=script), logits, CHAIN, 8)
    assert torch.equal(tokens[..., 3:, :], alone[..., 3:, :]) and batch.response_mask.all()
    assert not batch.columns["given"].any()
    first = tokens[..., :3, 0].flatten(-1).flatten()  # fresh, and of the policy
    assert 0.2 < (tokens[..., :3, :] == alone[..., :3, :]).double().mean() < 0.6
    counts = torch.bincount(first, minlength=4) / first.numel()
    want = logits[:, :, 0].softmax(-1).mean((0, 1))
    assert (counts - want).abs().max() < 4.5 * (0.25 / first.numel()) ** 0.5


@pytest.mark.parametrize("known", [False, True])
def test_demonstrations_stay_in_the_loss(known: bool) -> None:
    """Given whole: every token is trained on, marked in the column, and has the log-probs of who made it."""
    logits, last = random_logits(CHAIN, 3), torch.arange(8) == 7

    def script(attempt: Attempt) -> Start:
        assert attempt.hints is not None
        made = torch.tensor([-0.1, -0.2, -0.3]) if known else None
        return Start(attempt.hints.unsqueeze(1), torch.where(last, 3, 0).expand_as(attempt.given), None, True, made)

    batch, tokens, alone = drawn(Scripted(script=script), logits, CHAIN, 8)
    assert torch.equal(tokens[..., 7, :], CHAIN.solutions.expand(3, 8, 3)) and batch.response_mask.all()
    assert torch.equal(tokens[..., :7, :], alone[..., :7, :]) and batch.rollout_log_probs is not None
    assert batch.columns["given"].tolist() == [([0] * 7 + [3]) * 8] * 3
    made = batch.rollout_log_probs.reshape(3, 8, 8, 3)
    old = batch.old_log_probs.reshape(3, 8, 8, 3)
    assert torch.equal(made[..., :7, :], old[..., :7, :])
    want = torch.tensor([-0.1, -0.2, -0.3]).double().expand(3, 8, 3) if known else old[..., 7, :]
    torch.testing.assert_close(made[..., 7, :], want, rtol=1e-6, atol=1e-7)
    assert batch.group is not None and (batch.group.mean > 0).all()  # a right answer is in every group


def test_a_sampler_sees_its_state() -> None:
    @dataclass(frozen=True)
    class Counting(Hinted):
        def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> dict[str, Tensor]:
            return {"step": torch.zeros(run_shape, dtype=torch.int64)}

        def prepare(self, batch: etr.Batch, state: dict[str, Tensor]) -> tuple[etr.Batch, dict[str, Tensor]]:
            return batch, {"step": state["step"] + 1}

        def start(self, attempt: Attempt) -> Start | None:
            seen.append((attempt.round, attempt.state["step"].tolist()))
            return super().start(attempt)

    seen: list[tuple[int, list[int]]] = []
    train(Recipe("counting", Counting(always=True)), CHAIN, dataclasses.replace(SHORT, iterations=2))
    assert seen == [(0, [0] * 3), (1, [0] * 3), (0, [1] * 3), (1, [1] * 3)]


def test_a_run_does_not_notice_the_rounds_of_others() -> None:
    """Further rounds of a step have numbers of their own, however many the steps before took."""
    shape = (CHAIN.prompts, 8, 4)
    _, few = streams(range(2), shape, torch.float64)
    _, many = streams(range(2), shape, torch.float64)
    next(next(few))
    for further in (next(many),):
        for _ in range(5):
            next(further)
    assert torch.equal(next(next(few)), next(next(many)))
    _, other = streams([1], shape, torch.float64)
    next(other), next(few)
    assert not torch.equal(next(next(few)), next(next(many)))
    _, alone = streams([1], shape, torch.float64)
    assert torch.equal(next(next(alone))[0], next(next(streams(range(2), shape, torch.float64)[1]))[1])


def test_what_is_given_whole_must_be_trained_on() -> None:
    def script(attempt: Attempt) -> Start:
        return Start(attempt.tokens, torch.full_like(attempt.given, 3))

    with pytest.raises(InputError, match=r"Scripted.start: given has shape .* from 0 to the prefix's 2 tokens"):
        drawn(Scripted(script=script), random_logits(CHAIN, 2), CHAIN, 8)
    prefix = torch.zeros(2, 8, 4, 3, dtype=torch.int64)
    free = torch.rand(2, 8, 4, 3, dtype=torch.float64)
    whole = CHAIN.sample(random_logits(CHAIN, 2), free, prefix, given=torch.full((2, 8, 4), 3))
    assert torch.equal(whole, prefix)
    with pytest.raises(ValueError, match="so that a token is left to choose"):
        CHAIN.sample(random_logits(CHAIN, 2), free, prefix)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_who_cannot_give_refuses() -> None:
    assert {"hints", "resets"} <= set(supplies(CHAIN)) and not {"hints", "resets"} & set(supplies(make_model("bandit")))
    assert isinstance(Hinted(), Sampler) and not isinstance(GRPO(), Sampler)
    with pytest.raises(InputError, match="needs the first tokens of right answers while it samples"):
        train(Recipe("hinted", Hinted()), make_model("bandit"), SHORT)


def test_starts_that_do_not_fit() -> None:
    with pytest.raises(InputError, match=r"Hinted.start: given has shape .* from 0 to the prefix's 2 tokens"):
        train(Recipe("hinted", Hinted(length=3, always=True)), CHAIN, SHORT)

    class Endless(Hinted):
        def start(self, attempt: Attempt) -> Start | None:
            return Start(attempt.tokens, torch.zeros_like(attempt.given))

    with pytest.raises(InputError, match=r"Endless.start never has enough: 16 rounds"):
        train(Recipe("endless", Endless()), CHAIN, SHORT)
