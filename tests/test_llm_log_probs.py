"""Log-probabilities without stored logits equal those from full logits, in value, gradient and meaning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from etr.errors import InputError
from etr.llm import log_probs as module
from etr.llm.completions import check_log_probs
from etr.llm.log_probs import token_log_probs
from etr.llm.models import tiny_model
from etr.llm.prompts import position_ids

transformers = pytest.importorskip("transformers")


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


def test_the_gradient_is_right_by_finite_differences() -> None:
    hidden, weight, bias, tokens = inputs(torch.float64, n=5, vocab=11, width=3)
    tokens = tokens % 11

    def both(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return token_log_probs(h, w, tokens, 0.7, head_bias=b, chunk=2)

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))
    assert torch.autograd.gradcheck(lambda h, w, b: both(h, w, b)[0], (hidden, weight, bias))
    assert torch.autograd.gradcheck(lambda h, w, b: both(h, w, b)[1], (hidden, weight, bias))


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_theirs() -> None:
    hidden, weight, bias, tokens = inputs(torch.float64)
    token_log_probs(hidden, weight, tokens, head_bias=bias)[0].sum().backward()
    frozen = hidden.detach().clone().requires_grad_()
    token_log_probs(frozen, weight.detach(), tokens, head_bias=bias.detach())[0].sum().backward()
    assert torch.equal(frozen.grad, hidden.grad)


@pytest.mark.parametrize("asked", [False, True])
def test_the_gradient_of_entropy_costs_nothing_unless_asked_for(monkeypatch: pytest.MonkeyPatch, asked: bool) -> None:
    seen: list[Tensor | None] = []
    smooth = module._smooth_gradient
    monkeypatch.setattr(module, "_smooth_gradient", lambda *a: (seen.append(a[-1]), smooth(*a))[1])
    hidden, weight, _, tokens = inputs(torch.float32)
    log_probs, entropy = token_log_probs(hidden, weight, tokens)
    (log_probs.sum() + (0.1 * entropy.sum() if asked else 0.0)).backward()
    assert [gradient is not None for gradient in seen] == [asked]


def test_half_precision_gradients_are_near_those_of_float64() -> None:
    leaves = inputs(torch.bfloat16, n=200)
    tokens = leaves[3] % 101
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves[:3]]
    for h, w, b in (leaves[:3], exact):
        log_probs, entropy = token_log_probs(h, w, tokens, head_bias=b, chunk=7)
        (log_probs.sum() + 0.3 * entropy.sum()).backward()
    for leaf, reference in zip(leaves[:3], exact, strict=True):
        assert leaf.grad is not None and reference.grad is not None and leaf.grad.dtype == torch.bfloat16
        error = (leaf.grad.double() - reference.grad).norm() / reference.grad.norm()
        assert error < 0.01  # bfloat16 rounds by up to 0.004, here logits, their gradient and the result


def test_positions_start_at_the_first_real_token() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    assert position_ids(mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 3]]


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


LINEAR = [("Llama", {}), ("Qwen2", {}), ("Mistral", {}), ("Phi", {})]
SCALED = [("Cohere", {"logit_scale": 0.3}), ("Granite", {"logits_scaling": 4.0})]  # in front of the head is the same


@pytest.mark.parametrize("packing", ["padded", "cached", "prefix"])
@pytest.mark.parametrize(("name", "options"), LINEAR + SCALED)
def test_families_whose_logits_are_linear_in_the_hidden_states_pass_the_check(
    name: str, options: dict[str, Any], packing: str
) -> None:
    check_log_probs(family(name, **options), packing)


def test_a_model_that_caps_its_logits_is_refused() -> None:
    with pytest.raises(InputError, match=r"Gemma2ForCausalLM .* differ from its own by .*choose a model"):
        check_log_probs(family("Gemma2", final_logit_softcapping=5.0))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="LlamaModel has no output embedding; give a causal language model"):
        check_log_probs(tiny_model().model.model)
