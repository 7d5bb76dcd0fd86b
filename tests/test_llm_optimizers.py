"""The optimiser of an LLM: masters of bfloat16 weights are exact, resume is bit-equal."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.master_weights import join, split
from etr.llm.models import LanguageModel, tiny_model
from etr.llm.optimizers import LEARNING_RATE, Optimizer, make_optimizer
from etr.recipe import OptimizerSettings

pytest.importorskip("transformers")
ADAM = OptimizerSettings("adam", 3e-3, weight_decay=0.1)


def backward(model: Any, seed: int) -> None:
    """Add some gradient that depends on the weights and on the seed."""
    tokens = torch.randint(3, 18, (2, 9), generator=torch.Generator().manual_seed(seed))
    model(input_ids=tokens, labels=tokens).loss.backward()


def stepped(language_model: LanguageModel, optimizer: Optimizer, seeds: range, max_norm: float | None = None) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        backward(language_model.model, seed)
        optimizer.clip(max_norm)
        optimizer.step()


def weights(model: Any) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def as_int(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def test_any_float32_is_its_nearest_bfloat16_and_a_remainder() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int64).to(torch.int32)
    ties = torch.arange(-(2**15), 2**15, dtype=torch.int32) * 2**16 + 2**15  # halfway between two bfloat16
    values = torch.cat([bits, ties, ties - 1, ties + 1]).view(torch.float32)
    values = values[values.isfinite() & (values.abs() < 3e38)]
    weight, remainder = torch.empty_like(values, dtype=torch.bfloat16), torch.empty_like(values, dtype=torch.int16)
    split(values.clone(), weight, remainder)
    assert torch.equal(as_int(join(weight, remainder)), as_int(values))
    distance = (weight.double() - values.double()).abs()
    assert (distance <= (values.bfloat16().double() - values.double()).abs()).all()
    assert torch.equal(join(weight, torch.zeros_like(remainder)), weight.float())


def test_bfloat16_weights_follow_float32_masters_exactly() -> None:
    """Against torch's own AdamW on float32 copies, fed with the same gradients: the masters are equal bit for bit."""
    language_model = tiny_model(dtype="bfloat16")
    model, optimizer = language_model.model, make_optimizer(ADAM, language_model)
    masters = [torch.nn.Parameter(p.detach().float()) for p in model.parameters()]
    reference = torch.optim.AdamW(masters, lr=ADAM.lr, weight_decay=0.1, fused=True)
    for seed in range(4):
        optimizer.zero_grad()
        sums = [torch.zeros_like(master) for master in masters]
        for part in range(3):  # micro-batches: bfloat16 gradients of each, their sum in float32
            backward(model, 10 * seed + part)
            assert all(p.grad is None for p in model.parameters())
            twin = tiny_model(dtype="bfloat16").model
            twin.load_state_dict(model.state_dict())
            backward(twin, 10 * seed + part)
            for total, p in zip(sums, twin.parameters(), strict=True):
                total += p.grad
        for found, total in zip(optimizer.gradients(), sums, strict=True):
            assert found.dtype == torch.float32 and torch.equal(found, total)
        expected_norm = torch.nn.utils.get_total_norm(sums)
        torch.testing.assert_close(optimizer.clip(0.5 * float(expected_norm)), expected_norm)
        for master, total in zip(masters, sums, strict=True):
            master.grad = total * (0.5 * float(expected_norm) / expected_norm)
        optimizer.step()
        reference.step()
        for weight, master in zip(model.parameters(), masters, strict=True):
            near = master.detach().to(torch.bfloat16)
            assert (weight.detach() == near).float().mean() > 0.999  # but for exact ties
    remainders = [state["remainder"] for state in optimizer.state_dict().values()]
    for weight, remainder, master in zip(model.parameters(), remainders, masters, strict=True):
        torch.testing.assert_close(join(weight.detach(), remainder), master.detach(), rtol=1e-6, atol=1e-8)


def test_many_small_updates_are_not_lost_in_bfloat16() -> None:
    language_model = tiny_model(dtype="bfloat16")
    optimizer = make_optimizer(OptimizerSettings("sgd", 1e-5), language_model)
    weight = language_model.model.model.norm.weight  # ones, where bfloat16 steps are 2⁻⁷
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer._slots[optimizer.param_names.index("model.norm.weight")]._take(weight)
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(weight.detach().float(), torch.full_like(weight, 0.99).float(), rtol=0.004, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_resume_is_bit_equal(dtype: str, method: str) -> None:
    settings = dataclasses.replace(ADAM, method=method)
    straight, first, resumed = (tiny_model(dtype=dtype) for _ in range(3))
    optimizer = make_optimizer(settings, straight)
    stepped(straight, optimizer, range(6), 0.5)
    before = make_optimizer(settings, first)
    stepped(first, before, range(3), 0.5)
    after = make_optimizer(settings, resumed)
    resumed.model.load_state_dict(first.model.state_dict())
    after.load_state_dict(before.state_dict())
    saved = {name: {k: v.clone() for k, v in state.items()} for name, state in before.state_dict().items()}
    stepped(resumed, after, range(3, 6), 0.5)
    for one, other in zip(weights(straight.model), weights(resumed.model), strict=True):
        assert torch.equal(one, other)
    for name, state in before.state_dict().items():  # the first run's state was copied and not shared
        assert all(torch.equal(value, saved[name][key]) for key, value in state.items())
    for name, state in optimizer.state_dict().items():
        assert state.keys() == after.state_dict()[name].keys()
        assert all(torch.equal(value, after.state_dict()[name][key]) for key, value in state.items())


def test_a_state_of_another_model_is_refused() -> None:
    optimizer = make_optimizer(ADAM, tiny_model())
    with pytest.raises(InputError, match="of a model with other parameters; resume with its own settings"):
        optimizer.load_state_dict({"model.norm.weight": {}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["adam", "sgd"])
def test_float32_steps_are_torchs_own(dtype: str, method: str) -> None:
    """One step from the same gradients: AdamW and SGD of torch on float32 copies."""
    language_model = tiny_model(dtype=dtype)
    optimizer = make_optimizer(dataclasses.replace(ADAM, method=method), language_model)
    backward(language_model.model, 0)
    copies = [torch.nn.Parameter(p.float()) for p in weights(language_model.model)]
    for copy, gradient in zip(copies, optimizer.gradients(), strict=True):
        copy.grad = gradient.float().clone()
    kind = {"adam": torch.optim.AdamW, "sgd": torch.optim.SGD}[method]
    kind(copies, lr=3e-3, weight_decay=0.1).step()
    optimizer.step()
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if dtype == "float32" else {"rtol": 0.004, "atol": 1e-7}
    for parameter, copy in zip(language_model.model.parameters(), copies, strict=True):
        torch.testing.assert_close(parameter.detach().float(), copy.detach(), **tolerance)


def test_the_norm_is_that_of_all_gradients_and_no_limit_clips_nothing() -> None:
    language_model = tiny_model()
    optimizer = make_optimizer(ADAM, language_model)
    assert float(optimizer.norm()) == 0
    backward(language_model.model, 0)
    gradients = [p.grad.clone() for p in language_model.model.parameters()]
    norm = torch.cat([g.flatten() for g in gradients]).double().norm().float()
    torch.testing.assert_close(optimizer.clip(None), norm)
    torch.testing.assert_close(optimizer.clip(2 * float(norm)), norm)
    assert all(torch.equal(a, b) for a, b in zip(optimizer.gradients(), gradients, strict=True))
    optimizer.zero_grad()
    assert optimizer.gradients() == [] and float(optimizer.norm()) == 0


def test_frozen_parameters_are_left_out() -> None:
    language_model = tiny_model(dtype="bfloat16")
    language_model.model.model.embed_tokens.weight.requires_grad_(False)
    optimizer = make_optimizer(ADAM, language_model)
    assert "model.embed_tokens.weight" not in optimizer.param_names
    assert "model.norm.weight" in optimizer.param_names
    stepped(language_model, optimizer, range(1))
    assert torch.equal(
        language_model.model.model.embed_tokens.weight, tiny_model(dtype="bfloat16").model.model.embed_tokens.weight
    )


def test_the_learning_rate_is_the_recipes_or_the_models() -> None:
    def rate(name: str, lr: float | None) -> float:
        optimizer = make_optimizer(OptimizerSettings(lr=lr), dataclasses.replace(tiny_model(), name=name))
        return float(optimizer._slots[0].inner.param_groups[0]["lr"])

    assert [rate("tiny-random", None), rate("toy-llama", None), rate("toy-llama", 0.5)] == [LEARNING_RATE, 3e-4, 0.5]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_8bit_moments_are_near_float32_ones_and_resume_bit_equal(dtype: str) -> None:
    pytest.importorskip("torchao")
    exact, straight, first, resumed = (tiny_model(dtype=dtype) for _ in range(4))
    trained = ("model.layers.0.mlp.up_proj.weight", "model.norm.weight")  # quantised, and too small for it
    for language_model in (exact, straight, first, resumed):  # each shape takes torchao 10 s to compile
        for name, parameter in language_model.model.named_parameters():
            parameter.requires_grad_(name in trained)
    stepped(exact, make_optimizer(ADAM, exact), range(4))
    stepped(straight, make_optimizer(ADAM, straight, "8bit"), range(4))
    before, after = (make_optimizer(ADAM, lm, "8bit") for lm in (first, resumed))
    stepped(first, before, range(2))
    resumed.model.load_state_dict(first.model.state_dict())
    after.load_state_dict(before.state_dict())
    stepped(resumed, after, range(2, 4))
    start = torch.cat([w.float().flatten() for w in weights(tiny_model(dtype=dtype).model)])
    moves = []
    for model in (exact.model, straight.model, resumed.model):
        moves.append(torch.cat([w.float().flatten() for w in weights(model)]) - start)
    assert torch.equal(moves[1], moves[2])
    assert not torch.equal(moves[0], moves[1])
    assert torch.cosine_similarity(moves[0], moves[1], dim=0) > 0.99
    kinds = [type(before.state_dict()[name]["exp_avg"]).__name__ for name in trained]
    assert kinds == ["OptimState8bit", "Tensor"]


def on_host(dtype: str) -> tuple[LanguageModel, Optimizer]:
    """The optimiser of a GPU's offloaded state, on a CPU, where it must equal the plain one."""
    language_model = tiny_model(dtype=dtype)
    parameters = dict(language_model.model.named_parameters())
    options: dict[str, Any] = {"lr": ADAM.lr, "weight_decay": ADAM.weight_decay, "fused": True}
    return language_model, Optimizer(parameters, torch.optim.AdamW, options, on_host=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloaded_steps_equal_plain_ones(dtype: str) -> None:
    plain, (offloaded, optimizer) = tiny_model(dtype=dtype), on_host(dtype)
    stepped(plain, make_optimizer(ADAM, plain), range(3), 0.5)
    stepped(offloaded, optimizer, range(3), 0.5)
    for one, other in zip(weights(plain.model), weights(offloaded.model), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_optimizer(OptimizerSettings("sgd"), tiny_model()), "sgd has no learning rate here; set optimiz"),
        (
            lambda: make_optimizer(OptimizerSettings("sgd", 0.1), tiny_model(), "8bit"),
            "sgd keeps no moments to hold in",
        ),
        (
            lambda: make_optimizer(ADAM, tiny_model(), "offload"),
            "offload moves moments from a GPU .*; on a CPU use 8bit",
        ),
        (lambda: make_optimizer(ADAM, tiny_model(), "8 bit"), "unknown optimizer_state '8 bit'; did you mean '8bit'"),
        (
            lambda: make_optimizer(ADAM, tiny_model(dtype="float16")),
            "float16 gradients .*; train in bfloat16 or float32",
        ),
    ],
)
def test_bad_settings(make: Callable[[], Optimizer], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_missing_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="8bit needs torchao: pip install torchao"):
        make_optimizer(ADAM, tiny_model(), "8bit")
