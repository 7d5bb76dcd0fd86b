"""Log-probabilities of sampled tokens without ever holding the logits of a whole batch.

With a vocabulary of 50k to 150k, float32 logits [B, T, V] are the largest tensors of training by far. Here the head is
applied to a chunk of tokens at a time, and each chunk is computed again in the backward pass instead of being stored.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from etr.errors import InputError


def token_log_probs(
    hidden: Tensor,
    head_weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    *,
    head_bias: Tensor | None = None,
    chunk: int = 1024,
) -> tuple[Tensor, Tensor]:
    """log π(token) and the entropy of π, where π = softmax((W h + b) / temperature), in float32.

    Shapes: hidden [N, H], head_weight [V, H], head_bias [V], tokens [N] -> log_probs [N], entropy [N] (nats, over the
    full vocabulary). The log-probabilities equal those of `log_softmax` over the full logits bit for bit.
    """
    parts = [
        checkpoint(_chunk_log_probs, *part, head_weight, head_bias, temperature, use_reentrant=False)
        for part in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    ]
    log_probs, entropy = zip(*parts, strict=True)
    return torch.cat(log_probs), torch.cat(entropy)


def _chunk_log_probs(
    hidden: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        logits = logits / temperature
    log_pi = torch.log_softmax(logits, dim=-1)
    log_probs = log_pi.gather(-1, tokens[:, None]).squeeze(-1)
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    return log_probs, entropy


def completion_log_probs(
    model: Any, sequences: Tensor, attention_mask: Tensor, prompt_width: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completion tokens of left-padded sequences.

    Shapes: sequences and attention_mask [B, P + T], prompt_width P -> [B, T] each, zero where attention_mask is 0. The
    head sees only the positions that predict a kept completion token.
    """
    kept = attention_mask[:, prompt_width:].bool()
    backbone, head = model.base_model, model.get_output_embeddings()
    outputs = backbone(
        input_ids=sequences[:, :-1],  # the last token predicts nothing that was sampled
        attention_mask=attention_mask[:, :-1],
        position_ids=position_ids(attention_mask)[:, :-1],
        use_cache=False,
    )
    hidden = outputs.last_hidden_state[:, prompt_width - 1 :][kept]
    values = token_log_probs(
        hidden, head.weight, sequences[:, prompt_width:][kept], temperature, head_bias=getattr(head, "bias", None)
    )
    log_probs, entropy = (value.new_zeros(kept.shape).masked_scatter(kept, value) for value in values)
    return log_probs, entropy


def position_ids(attention_mask: Tensor) -> Tensor:
    """Positions counted from the first real token of each row, so that left padding does not shift a prompt."""
    return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)


def check_head(model: Any) -> None:
    """Raise `InputError` unless the model's logits are its output embedding applied to its last hidden state.

    Some families scale or softly cap their logits, each under a config name of its own; `completion_log_probs` would be
    wrong for them without a sign, so the two computations are compared on a short sequence instead of reading names.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output embedding; give a causal language model")
    tokens = torch.arange(8, device=model.device)[None] % head.weight.shape[0]
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        hidden = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        logits = F.linear(hidden, head.weight, getattr(head, "bias", None))
    if logits.shape != expected.shape or not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3):
        raise InputError(
            f"{type(model).__name__} changes its logits after the output embedding (a scale or a soft cap), which "
            "log-probabilities computed from hidden states would miss; choose a model without it"
        )
