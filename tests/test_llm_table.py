"""A language model as a table: against the model asked state by state, and against its own samples."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from etr import exact
from etr.errors import InputError
from etr.llm import small
from etr.llm.models import LanguageModel
from etr.llm.rollout import TransformersEngine, request_seeds
from etr.llm.table import policy_table, prompt_ids, sampled_reward
from toy_envs import ExactModel, make_model

pytest.importorskip("transformers")
SYMBOLS = "abcd><"


def language_model(seed: int = 0, answers: int | None = None) -> LanguageModel:
    """A random Llama, sharpened so that its choices depend on what it reads; with `answers` it can say those only."""
    tokenizer = small.character_tokenizer(f"{SYMBOLS}+%=")
    model = small.random_llama(tokenizer, seed)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3.0)
    if answers is not None:
        bias = torch.full((len(tokenizer),), -1e4)
        bias[tokenizer(SYMBOLS[:answers])["input_ids"]] = 0.0
        head = torch.nn.Linear(64, len(tokenizer))
        head.weight, head.bias = model.get_output_embeddings().weight, torch.nn.Parameter(bias)
        model.set_output_embeddings(head)
    return LanguageModel(model, tokenizer, "random")


def environment(vocab_size: int, horizon: int, seed: int = 0) -> ExactModel:
    """Prompts of three tokens, two of them from outside the answers, and any success probabilities."""
    generator = torch.Generator().manual_seed(seed)
    success = torch.rand(3, vocab_size**horizon, generator=generator, dtype=torch.float64)
    text = torch.tensor([[4, 0, 1], [5, 1, 0], [4, 1, 1]])
    return ExactModel(vocab_size, horizon, success, prompt_tokens=text)


@torch.no_grad()
def next_log_probs(lm: LanguageModel, text: str) -> torch.Tensor:
    """log π of the next token over the whole vocabulary, by asking the model for this text alone."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    return lm.model(input_ids=ids).logits[0, -1].double().log_softmax(-1)


@pytest.mark.parametrize(("vocab_size", "horizon", "template"), [(3, 3, ""), (2, 4, "{1}+{2}%{0}="), (4, 1, "")])
def test_every_state_is_the_model_asked_for_it(vocab_size: int, horizon: int, template: str) -> None:
    lm, model = language_model(), environment(vocab_size, horizon)
    table = policy_table(lm, model, SYMBOLS, template)
    assert table.shape == (3, model.states, vocab_size) and table.dtype == torch.float64
    texts = ["a+b%>=", "b+a%<=", "b+b%>="] if template else [">ab", "<ba", ">bb"]
    for prompt, text in enumerate(texts):
        state = 0
        for length in range(horizon):
            for prefix in product(range(vocab_size), repeat=length):
                written = text + "".join(SYMBOLS[token] for token in prefix)
                answers = next_log_probs(lm, written)[lm.tokenizer(SYMBOLS[:vocab_size])["input_ids"]]
                assert torch.allclose(table[prompt, state], answers, atol=1e-4), (written, state)
                state += 1
        assert state == model.states


def test_sampled_reward_is_the_sum_over_all_sequences() -> None:
    lm, model = language_model(1), environment(2, 3)
    table = policy_table(lm, model, SYMBOLS).detach()
    value = sampled_reward(table, model)
    for prompt, text in enumerate([">ab", "<ba", ">bb"]):
        total = 0.0
        for number, letters in enumerate(product("ab", repeat=3)):
            chance = 1.0
            for place, letter in enumerate(letters):
                written = text + "".join(letters[:place])
                chance *= next_log_probs(lm, written)[lm.tokenizer(letter)["input_ids"][0]].exp().item()
            total += chance * model.success[prompt, number].item()
        assert value[prompt].item() == pytest.approx(total, rel=1e-4)
    assert bool((value < exact.expected_reward(table, model)).all())


def sampled_success(lm: LanguageModel, model: ExactModel, prompts: list[list[int]], group_size: int) -> torch.Tensor:
    """P(right) of each completion that the rollout engine samples, 0 where it is no answer: `[P, group_size]`."""
    seeds = request_seeds(3, 1, range(len(prompts)), group_size)
    rollout = TransformersEngine(lm, model.horizon).generate(prompts, group_size, seeds)
    tokens = {lm.tokenizer(s)["input_ids"][0]: i for i, s in enumerate(SYMBOLS[: model.vocab_size])}
    values = []
    for row, completion in enumerate(rollout.completions.tolist()):
        answer = [tokens.get(token) for token in completion]
        known = [token for token in answer if token is not None]
        index = int(sum(t * model.vocab_size ** (model.horizon - 1 - i) for i, t in enumerate(known)))
        right = len(known) == model.horizon and bool(rollout.response_mask[row].all())
        values.append(model.success[row // group_size, index].item() if right else 0.0)
    return torch.tensor(values, dtype=torch.float64).view(-1, group_size)


def within(value: torch.Tensor, samples: torch.Tensor) -> bool:
    """Every prompt's value within 4 standard errors of its samples' mean."""
    error = samples.std(-1) / samples.shape[-1] ** 0.5
    return bool(((samples.mean(-1) - value).abs() < 4 * error).all())


def test_exact_reward_is_what_the_rollout_engine_earns() -> None:
    """A model that can say nothing but answers: the exact value of the toy world is the mean of the LLM world."""
    lm, model = language_model(2, answers=3), environment(3, 3)
    table = policy_table(lm, model, SYMBOLS).detach()
    assert torch.allclose(table.exp().sum(-1), torch.ones(()).double())
    value, samples = (
        exact.expected_reward(table, model),
        sampled_success(lm, model, prompt_ids(lm, model, SYMBOLS), 4000),
    )
    assert torch.allclose(value, sampled_reward(table, model))
    assert within(value, samples)
    assert not within(exact.expected_reward(torch.zeros_like(table), model), samples)


def test_sampled_reward_is_what_the_rollout_engine_earns_from_a_model_that_may_say_anything() -> None:
    lm, model = language_model(2), environment(3, 2)
    table = policy_table(lm, model, SYMBOLS).detach()
    samples = sampled_success(lm, model, prompt_ids(lm, model, SYMBOLS), 4000)
    assert within(sampled_reward(table, model), samples)
    assert not within(exact.expected_reward(table, model), samples)


def test_temperature_is_that_of_sampling() -> None:
    lm, model = language_model(2), environment(3, 2)
    hot, cold = (policy_table(lm, model, SYMBOLS, temperature=t).detach() for t in (2.0, 1.0))
    assert torch.allclose(hot.log_softmax(-1), (cold / 2).log_softmax(-1))


def test_the_exact_gradient_reaches_the_weights() -> None:
    """A small step along ∂J/∂weights raises J by its norm times the step (Llama's norms are single precision)."""
    lm, model = language_model(3), environment(2, 2)
    parameters = list(lm.model.parameters())

    def value() -> torch.Tensor:
        return exact.expected_reward(policy_table(lm, model, SYMBOLS), model).mean()

    gradients = torch.autograd.grad(value(), parameters)
    norm, step = float(sum(g.double().square().sum() for g in gradients)) ** 0.5, 1e-3
    ends = []
    for move in (step, -2 * step):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter += move * gradient / norm
            ends.append(value().item())
    assert norm > 1e-2
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(norm, rel=1e-2)


@pytest.mark.parametrize(
    ("name", "symbols", "template"),
    [("copy-medium", "abc><", ""), ("mod-m5", "abcd>", "{}+{}%<="), ("copy-hard", SYMBOLS, "")],
)
def test_the_environments_with_prompts_fit(name: str, symbols: str, template: str) -> None:
    lm, model = language_model(answers=None), make_model(name)
    table = policy_table(lm, model, symbols, template).detach()
    assert table.shape == (model.prompts, model.states, model.vocab_size)
    assert bool((exact.expected_reward(table, model) <= 1).all())
    assert bool((exact.kl(table, torch.zeros_like(table), model) >= 0).all())


@pytest.mark.parametrize(
    ("change", "symbols", "message"),
    [
        ({"prompt_tokens": None}, SYMBOLS, "have no text; use one that has prompt_tokens"),
        ({}, "abcd", "has no character for token 5; add it"),
        ({"vocab_size": 4}, "abc", "must start with 4 characters"),
        ({}, "xyz><<", "one token each for model 'random'; choose others"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], symbols: str, message: str) -> None:
    model = environment(3, 2)
    fields = {name: getattr(model, name) for name in ("vocab_size", "horizon", "success", "prompt_tokens")}
    with pytest.raises(InputError, match=message):
        policy_table(language_model(), SimpleNamespace(**{**fields, **change}), symbols)
