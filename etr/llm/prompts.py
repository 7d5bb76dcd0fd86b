"""Reading a prompt once for all the completions of its group.

A group repeats one prompt G times. Keeping the keys and values of the distinct prompts and repeating those makes both
sampling and training about twice as fast when prompts are longer than answers; gradients flow through the repetition.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def can_share_prompts(model: Any) -> bool:
    """True where every layer keeps plain keys and values, and none is recomputed in the backward pass."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    if recomputes or getattr(model, "_is_stateful", False):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def read_prompts(model: Any, prompt_ids: Tensor, prompt_mask: Tensor) -> tuple[Tensor, Any]:
    """Run the backbone over left-padded prompts [U, P]; returns the hidden states [U, P, H] and the filled cache."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    outputs = model.base_model(
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
        position_ids=position_ids(prompt_mask),
        past_key_values=cache,
        use_cache=True,
    )
    return outputs.last_hidden_state, cache


def shared_hidden(model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> Tensor:
    """Hidden states that predict each completion token, [B, T, H], reading runs of equal prompts once."""
    # Padding may share the id of a real token, so two prompts are equal only if their masks are.
    rows = torch.cat([sequences[:, :prompt_width], attention_mask[:, :prompt_width]], dim=1)
    distinct, index = torch.unique_consecutive(rows, dim=0, return_inverse=True)
    prompt_hidden, cache = read_prompts(model, *distinct.split(prompt_width, dim=1))
    first = prompt_hidden[:, -1:][index]
    if sequences.shape[1] == prompt_width + 1:
        return first
    cache.batch_select_indices(index)
    outputs = model.base_model(
        input_ids=sequences[:, prompt_width:-1],  # the last token predicts nothing that was sampled
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask)[:, prompt_width:-1],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.cat([first, outputs.last_hidden_state], dim=1)


def full_hidden(model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int) -> Tensor:
    """The same [B, T, H] from one pass over whole sequences, for models that cannot share prompts."""
    outputs = model.base_model(
        input_ids=sequences[:, :-1],
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask)[:, :-1],
        use_cache=False,
    )
    return outputs.last_hidden_state[:, prompt_width - 1 :]  # type: ignore[no-any-return]


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first real token of each row, so that left padding does not shift a prompt."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)
