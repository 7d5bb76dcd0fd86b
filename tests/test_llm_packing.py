"""Every packing gives the numbers of each row alone, in value and gradient; no token sees a neighbour's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from llm_rollouts import PROMPTS, from_full_logits, made_rollout
from torch import Tensor

from etr.llm.completions import completion_log_probs
from etr.llm.models import LanguageModel, recompute_layers, tiny_model
from etr.llm.packing import Packed, pack_groups
from etr.llm.policy import PACKINGS, Policy
from etr.llm.rollout import Rollout

transformers = pytest.importorskip("transformers")
ALL = slice(0, 3 * len(PROMPTS))


def gpt2(attention: str = "sdpa") -> Any:
    """Float64 throughout (Llama's norms are float32), and positions are known by number and not by distance."""
    config = transformers.GPT2Config(vocab_size=18, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=1)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).to(torch.float64).eval()
    model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():
        if "ln" not in name and "bias" not in name:
            parameter.data.mul_(8)  # otherwise all positions look alike
    return model


def language_model(model: Any) -> LanguageModel:
    return dataclasses.replace(tiny_model(), model=model)


def gradients(model: Any, log_probs: Tensor, entropy: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype).view_as(log_probs)
    return list(torch.autograd.grad((weights * log_probs + 0.1 * entropy).sum(), list(model.parameters())))


def compute(model: Any, rollout: Rollout, packing: str, temperature: float = 0.7) -> tuple[Tensor, Tensor]:
    columns = (rollout.sequences, rollout.attention_mask, rollout.prompt_width)
    return completion_log_probs(model, *columns, temperature, packing)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", PACKINGS)
def test_values_and_gradients_equal_those_of_each_row_alone(packing: str, attention: str) -> None:
    model, rollout = gpt2(attention), made_rollout()
    found, expected = compute(model, rollout, packing), from_full_logits(model, rollout, 0.7)
    tight = {"rtol": 1e-10, "atol": 1e-11}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **tight)
    for one, other in zip(gradients(model, *found), gradients(model, *expected), strict=True):
        torch.testing.assert_close(one, other, **tight)


@pytest.mark.parametrize("packing", PACKINGS)
def test_bfloat16_log_probs_are_float32_and_near_those_of_each_row_alone(packing: str) -> None:
    model, rollout = tiny_model(dtype="bfloat16").model, made_rollout()
    found, expected = compute(model, rollout, packing), from_full_logits(model, rollout, 0.7)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=0, atol=0.02)


def test_rotary_positions_restart_in_each_completion() -> None:
    model, rollout = tiny_model(dtype="float64").model, made_rollout()
    for parameter in model.parameters():
        parameter.data.mul_(4)
    expected = from_full_logits(model, rollout, 1.0)[0]
    torch.testing.assert_close(compute(model, rollout, "prefix", 1.0)[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_second_pass_gives_the_same_bits_with_and_without_a_graph(packing: str) -> None:
    policy, rollout = Policy(tiny_model(), packing=packing), made_rollout()
    with torch.no_grad():
        old = policy.log_probs(rollout, ALL)[0]
    assert torch.equal(old, policy.log_probs(rollout, ALL)[0])


@pytest.mark.parametrize("packing", PACKINGS)
def test_one_token_completions(packing: str) -> None:
    model, rollout = gpt2(), made_rollout(width=1)
    expected = from_full_logits(model, rollout, 0.7)[0]
    torch.testing.assert_close(compute(model, rollout, packing)[0], expected, rtol=1e-10, atol=1e-11)


def seen_by(packed: Packed) -> Tensor:
    """The rule in words, as loops: a token sees its prompt and the earlier tokens of its own segment."""
    rows, width = packed.ids.shape
    allowed = torch.zeros(rows, width, width, dtype=torch.bool)
    for r in range(rows):
        segment, prompt = packed.segment[r].tolist(), packed.prompt[r].tolist()
        for query in range(width):
            for key in range(query + 1):
                allowed[r, query, key] = segment[key] in (segment[query], prompt[query])
    return allowed


@pytest.mark.parametrize("one_row", [False, True])
def test_the_packed_row_as_drawn_in_the_module(one_row: bool) -> None:
    sequences = torch.tensor([[9, 3, 4, 5, 6, 9], [9, 3, 4, 7, 8, 2], [5, 6, 7, 8, 9, 9]])
    mask = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    packed = pack_groups(sequences, mask, 3, one_row)
    first, second = [3, 4, 5, 7, 8], [5, 6, 7]
    positions = [0, 1, 2, 2, 3], [0, 1, 2]
    width = packed.ids.shape[1]
    ids, places = packed.ids.flatten().tolist(), packed.positions.flatten().tolist()
    start = 5 if one_row else width
    assert (ids[:5], ids[start : start + 3]) == (first, second)
    assert (places[:5], places[start : start + 3]) == positions
    assert packed.predictors.tolist() == [1, 2, 1, 3, 4, start + 2]
    assert width == (128 if one_row else 5)
    assert torch.equal(packed.visible()[:, 0], seen_by(packed))
    own = packed.visible()[0, 0, 3]  # 7, the first token of the second completion
    assert own.nonzero().flatten().tolist() == [0, 1, 3]


def test_the_block_mask_of_flex_attention_is_the_dense_one() -> None:
    rollout = made_rollout(group_size=30, width=12)
    packed = pack_groups(rollout.sequences, rollout.attention_mask, rollout.prompt_width, one_row=True)
    assert packed.ids.shape[0] == 1 and packed.ids.shape[1] % 128 == 0 and packed.ids.shape[1] > 256
    mask, dense = packed.blocks(), packed.visible()
    place = torch.arange(packed.ids.shape[1])
    row = torch.zeros((), dtype=torch.long)
    assert torch.equal(mask.mask_mod(row, row, place[:, None], place[None, :]), dense[0, 0])
    blocks = dense[0, 0].unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).any(3).any(1)
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks)
    assert not blocks.all()  # something is skipped


@pytest.mark.slow
def test_flex_attention_gives_the_same_log_probs() -> None:
    model, rollout = tiny_model().model, made_rollout()
    expected = compute(model, rollout, "padded")
    model.set_attn_implementation("flex_attention")
    with torch.no_grad():  # flex attention has no backward pass on a CPU
        found = compute(model, rollout, "prefix")
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", ["prefix", "padded"])
def test_gradient_checkpointing_recomputes_layers_and_changes_nothing(packing: str) -> None:
    rollout = made_rollout()
    plain, checkpointed = tiny_model().model, tiny_model().model
    recompute_layers(checkpointed)
    calls = {id(model): 0 for model in (plain, checkpointed)}
    found = []
    for model in (plain, checkpointed):

        def count(*_: Any, key: int = id(model)) -> None:
            calls[key] += 1

        model.model.layers[0].self_attn.register_forward_hook(count)
        found.append(gradients(model, *compute(model, rollout, packing)))
        assert not any(module.training for module in model.modules())
    assert (calls[id(plain)], calls[id(checkpointed)]) == (1, 2)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_dropout_stays_off_in_recomputed_layers() -> None:
    config = transformers.GPT2Config(vocab_size=18, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=1)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()  # drops a tenth by default
    recompute_layers(model)
    policy, rollout = Policy(language_model(model)), made_rollout()
    assert torch.equal(policy.log_probs(rollout, ALL)[0], policy.log_probs(rollout, ALL)[0])
