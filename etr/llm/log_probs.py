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
from etr.llm.prompts import can_share_prompts, full_hidden, shared_hidden


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
    full vocabulary). The log-probabilities of a chunk equal `log_softmax` over its logits bit for bit. Gradients flow
    through both outputs, so that an entropy bonus works.
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
    read = shared_hidden if can_share_prompts(model) else full_hidden
    hidden = read(model, sequences, attention_mask, prompt_width)[kept]
    head = model.get_output_embeddings()
    tokens, bias = sequences[:, prompt_width:][kept], getattr(head, "bias", None)
    values = token_log_probs(hidden, head.weight, tokens, temperature, head_bias=bias)
    log_probs, entropy = (value.new_zeros(kept.shape).masked_scatter(kept, value) for value in values)
    return log_probs, entropy


def check_log_probs(model: Any) -> None:
    """Raise `InputError` unless `completion_log_probs` agrees with the logits the model itself returns.

    Some families scale or softly cap their logits, each under a config name of its own, and `completion_log_probs`
    would be wrong for them without a sign; so the two are compared on short sequences instead of reading names.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output embedding; give a causal language model")
    tokens = torch.arange(4 * 6, device=model.device).view(4, 6) % head.weight.shape[0]
    tokens[1::2, :3] = tokens[::2, :3]  # two prompts, each with two completions
    with torch.no_grad():
        log_pi = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        expected = log_pi[:, 2:-1].gather(-1, tokens[:, 3:, None]).squeeze(-1)
        found, _ = completion_log_probs(model, tokens, torch.ones_like(tokens), prompt_width=3)
    # Half precision rounds each layer differently in the two computations; a missing scale is far larger than this.
    tolerance = 1e-3 if model.dtype in (torch.float32, torch.float64) else 0.1
    error = (found - expected).abs().max().item()
    if not error < tolerance:
        raise InputError(
            f"log-probabilities of {type(model).__name__} computed from its hidden states differ from its own by "
            f"{error:.2g} (does it scale or cap its logits?); choose a model whose logits come straight from its head"
        )
