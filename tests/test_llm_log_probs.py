"""Log-probabilities without stored logits equal those from full logits, in value, gradient and meaning."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from etr.errors import InputError
from etr.llm import log_probs as module
from etr.llm.log_probs import check_log_probs, completion_log_probs, token_log_probs
from etr.llm.models import tiny_model
from etr.llm.prompts import can_share_prompts, full_hidden, position_ids, shared_hidden
from etr.llm.rollout import Rollout, TransformersEngine

transformers = pytest.importorskip("transformers")
PROMPTS = [[3, 4, 5], [3, 4, 5], [6, 7], [8], [1, 8]]  # [8] and [1, 8] look alike where padding is the end token, 1


def plain(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    log_pi = torch.log_softmax(F.linear(hidden, weight, bias).float() / temperature, dim=-1)
    return log_pi.gather(-1, tokens[:, None])[:, 0], torch.distributions.Categorical(logits=log_pi).entropy()


def inputs(dtype: torch.dtype, n: int = 37, vocab: int = 101, width: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, width, generator=generator).to(dtype) for size in (n, vocab))
    bias = torch.randn(vocab, generator=generator).to(dtype)
    return hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), torch.arange(n) * 2


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_bit_equal_to_log_softmax_over_full_logits(temperature: float) -> None:
    hidden, weight, bias, tokens = inputs(torch.float32)
    found, entropy = token_log_probs(hidden, weight, tokens, temperature, head_bias=bias)
    expected, expected_entropy = plain(hidden, weight, bias, tokens, temperature)
    assert torch.equal(found, expected)
    torch.testing.assert_close(entropy, expected_entropy)


def test_half_precision_is_raised_to_float32_before_the_softmax() -> None:
    hidden, weight, _, tokens = inputs(torch.bfloat16)
    found, entropy = token_log_probs(hidden, weight, tokens)
    assert found.dtype == entropy.dtype == torch.float32
    assert torch.equal(found, plain(hidden, weight, None, tokens, 1.0)[0])


@pytest.mark.parametrize("chunk", [1, 10, 1024])
def test_gradients_of_log_probs_and_entropy_do_not_depend_on_the_chunk(chunk: int) -> None:
    leaves = inputs(torch.float64)
    hidden, weight, bias, tokens = leaves

    def gradients(log_probs: Tensor, entropy: Tensor) -> tuple[Tensor, ...]:
        weights = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
        return torch.autograd.grad((weights * log_probs + 0.3 * entropy).sum(), (hidden, weight, bias))

    log_pi = torch.log_softmax(F.linear(hidden, weight, bias) / 0.7, dim=-1)
    expected = gradients(log_pi.gather(-1, tokens[:, None])[:, 0], -(log_pi.exp() * log_pi).sum(-1))
    found = gradients(*token_log_probs(hidden, weight, tokens, 0.7, head_bias=bias, chunk=chunk))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def largest(compute: Callable[[], tuple[Tensor, Tensor]]) -> tuple[int, int]:
    """Size of the largest tensor made in forward and backward, and of all that are kept between them."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()  # views of one tensor are kept once
        saved[memory.data_ptr()] = memory.nbytes() // tensor.element_size()
        return tensor

    with Largest() as made, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()[0].sum().backward()
    return made.numel, sum(saved.values())


def test_full_logits_are_neither_made_nor_kept() -> None:
    hidden, weight, bias, tokens = inputs(torch.float32, n=400)
    tokens = tokens % 101
    full = 400 * 101
    assert min(largest(lambda: plain(hidden, weight, bias, tokens, 1.0))) >= full  # the measure sees what it should
    made, saved = largest(lambda: token_log_probs(hidden, weight, tokens, head_bias=bias, chunk=20))
    assert made < full / 5
    assert saved < full / 5


def rollout(dtype: str = "float64", share_pad: bool = False, absolute: bool = False) -> tuple[Any, Rollout]:
    """Sampled rows; `absolute`: from a model that knows each position by its number and not by its distance."""
    language_model = tiny_model(dtype=dtype)
    if absolute:
        config = transformers.GPT2Config(vocab_size=18, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=1)
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config).to(torch.float64).eval()
        language_model = dataclasses.replace(language_model, model=model)
    if share_pad:
        language_model.tokenizer.pad_token = language_model.tokenizer.eos_token
    return language_model.model, TransformersEngine(language_model, 8).generate(PROMPTS, 3, seed=1)


def from_full_logits(model: Any, sample: Rollout, temperature: float) -> tuple[Tensor, Tensor]:
    """One row at a time and without padding, so that no mask or position can be wrong."""
    log_probs, entropy = (torch.zeros(sample.completions.shape, dtype=torch.float64) for _ in range(2))
    for row, length in enumerate(sample.lengths.tolist()):
        real = sample.attention_mask[row].bool()
        log_pi = (model(input_ids=sample.sequences[row][real][None]).logits[0] / temperature).log_softmax(-1)
        answer = log_pi[-length - 1 : -1]
        log_probs[row, :length] = answer.gather(-1, sample.completions[row, :length, None])[:, 0]
        entropy[row, :length] = -(answer.exp() * answer).sum(-1)
    return log_probs, entropy


@pytest.mark.parametrize("kind", [{}, {"share_pad": True}, {"absolute": True}])
@pytest.mark.parametrize("read", [shared_hidden, full_hidden])
def test_completion_log_probs_equal_those_of_each_row_alone(
    monkeypatch: pytest.MonkeyPatch, read: Any, kind: dict[str, bool]
) -> None:
    model, sample = rollout(**kind)
    assert can_share_prompts(model)
    assert set(sample.lengths.tolist()) != {8}, "some completions must be shorter than the longest"
    monkeypatch.setattr(module, "can_share_prompts", lambda model: read is shared_hidden)
    arguments = (model, sample.sequences, sample.attention_mask, sample.prompt_width, 0.7)
    found = completion_log_probs(*arguments)
    expected = from_full_logits(model, sample, 0.7)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # rotary angles are float32 in every dtype


@pytest.mark.parametrize("read", [shared_hidden, full_hidden])
def test_gradients_equal_those_of_each_row_alone(monkeypatch: pytest.MonkeyPatch, read: Any) -> None:
    model, sample = rollout()
    weights = torch.linspace(-1, 2, sample.completions.numel(), dtype=torch.float64).view_as(sample.completions)
    monkeypatch.setattr(module, "can_share_prompts", lambda model: read is shared_hidden)
    found, _ = completion_log_probs(model, sample.sequences, sample.attention_mask, sample.prompt_width)
    expected, _ = from_full_logits(model, sample, 1.0)
    parameters = list(model.parameters())
    pairs = zip(*(torch.autograd.grad((weights * x).sum(), parameters) for x in (found, expected)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_ratio_of_two_passes_over_the_same_weights_is_exactly_one() -> None:
    model, sample = rollout("float32")
    arguments = (model, sample.sequences, sample.attention_mask, sample.prompt_width)
    with torch.no_grad():
        old, _ = completion_log_probs(*arguments)
    new, _ = completion_log_probs(*arguments)
    assert torch.equal(old, new)


def test_one_token_completions_need_no_second_pass() -> None:
    language_model = tiny_model(dtype="float64")
    sample = TransformersEngine(language_model, 1).generate(PROMPTS, 2, seed=0)
    found, _ = completion_log_probs(language_model.model, sample.sequences, sample.attention_mask, sample.prompt_width)
    torch.testing.assert_close(found, from_full_logits(language_model.model, sample, 1.0)[0], rtol=1e-6, atol=1e-6)


def test_positions_start_at_the_first_real_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


def test_prompts_are_not_shared_where_layers_are_recomputed() -> None:
    model = tiny_model().model
    assert can_share_prompts(model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()  # renamed in transformers 5
    assert not can_share_prompts(model)


SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1,
}  # fmt: skip


def family(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SMALL, **options))
    head = model.get_output_embeddings()
    head.weight.data.mul_(40)  # logits as large as a trained model's
    if head.bias is not None:
        head.bias.data.normal_()
    return model.eval()


@pytest.mark.parametrize("name", ["Llama", "Qwen2", "Mistral", "Phi"])
def test_families_with_a_plain_head_pass_the_check(name: str) -> None:
    check_log_probs(family(name))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Gemma2", {"final_logit_softcapping": 5.0}),
        ("Cohere", {"logit_scale": 0.3}),
        ("Granite", {"logits_scaling": 4.0}),
    ],
)
def test_models_that_change_their_logits_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"{name}ForCausalLM .* differ from its own by .*choose a model"):
        check_log_probs(family(name, **options))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="LlamaModel has no output embedding; give a causal language model"):
        check_log_probs(tiny_model().model.model)
