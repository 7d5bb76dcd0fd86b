"""Hidden states of completions from a model's own forward pass, with each group's prompt read once or not.

A group repeats one prompt G times. Keeping the keys and values of the distinct prompts and repeating those makes both
sampling and training faster when prompts are not short; gradients flow through the repetition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def can_share_prompts(model: Any) -> bool:
    """True where every layer keeps plain keys and values, and keeps them now."""
    return plain_attention(model) and not any(module.training for module in recomputed(model))


def recomputed(model: Any) -> list[Any]:
    """Layers with gradient checkpointing: their activations are computed again in the backward pass."""
    return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]


def compiled(model: Any) -> bool:
    """Are layers of the model compiled (`etr.llm.compiled_layers`)?"""
    return any(module._compiled_call_impl is not None for module in model.modules())


def plain_attention(model: Any) -> bool:
    """True where every layer may see all earlier tokens and remembers nothing but their keys and values."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def hidden_states(model: Any, **inputs: Any) -> Tensor:
    """What the model's head reads, [B, S, H]: the whole model is called, so that wrappers such as FSDP and LoRA act.

    The head itself is left out, because its logits [B, S, V] would be the largest tensor of all.
    """
    # A layer that is to be recomputed keeps no keys and values, so passes that need those do without recomputation.
    with _without_head(model), nullcontext() if inputs["use_cache"] else _recomputing(model):
        hidden: Tensor = model(**inputs).logits
    return hidden


@contextmanager
def _without_head(model: Any) -> Iterator[None]:
    head = model.get_output_embeddings()
    head.forward = lambda hidden: hidden  # an attribute of this one module, in front of its class's method
    try:
        yield
    finally:
        del head.forward


@contextmanager
def _recomputing(model: Any) -> Iterator[None]:
    """Gradient checkpointing acts although the model is in evaluation mode.

    transformers recomputes a layer only while that layer's own `training` is set. Setting it on these layers alone, and
    not on what is in them, leaves dropout off: with dropout the ratio of two passes would not be 1.
    """
    layers = [module for module in recomputed(model) if not module.training]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


def read_prompts(model: Any, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Any]:
    """Run the model over left-padded prompts [U, P]; returns the hidden states [U, P, H] and the filled cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    hidden = hidden_states(
        model,
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=position_ids(prompt_mask),
        past_key_values=cache,
        use_cache=True,
    )
    return hidden, cache


def shared_hidden(model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> Tensor:
    """Hidden states that predict each completion token, [B, T, H], reading runs of equal prompts once."""
    distinct, index = distinct_prompts(sequences, attention_mask, prompt_width)
    prompt_hidden, cache = read_prompts(model, *distinct.split(prompt_width, dim=1))
    first = prompt_hidden[:, -1:][index]
    if sequences.shape[1] == prompt_width + 1:
        return first
    cache.batch_select_indices(index)
    hidden = hidden_states(
        model,
        input_ids=sequences[:, prompt_width:-1],  # the last token predicts nothing that was sampled
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask)[:, prompt_width:-1],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, hidden], dim=1)


def full_hidden(model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> Tensor:
    """The same [B, T, H] from one pass over whole sequences, for models that cannot share prompts."""
    hidden = hidden_states(
        model,
        input_ids=sequences[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask)[:, :-1],
        use_cache=False,
    )
    return hidden[:, prompt_width - 1 :]


def distinct_prompts(sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> tuple[Tensor, Tensor]:
    """Runs of equal prompts: their ids and masks side by side, [U, 2 P], and the run of each row, [B]."""
    # Padding may share the id of a real token, so two prompts are equal only if their masks are.
    rows = torch.cat([sequences[:, :prompt_width], attention_mask[:, :prompt_width]], dim=1)
    distinct, index = torch.unique_consecutive(rows, dim=0, return_inverse=True)
    return distinct, index


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first real token of each row, so that left padding does not shift a prompt."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
