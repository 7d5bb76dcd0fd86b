"""Log-probs, entropies and likeliest tokens of sampled completions, from one forward pass in any packing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.log_probs import held_logits, logits_of, token_log_probs
from etr.llm.packing import prefix_hidden
from etr.llm.prompts import full_hidden, shared_hidden


class Read(NamedTuple):
    """What predicts the n kept completion tokens of some rows.

    hidden [n, H]; weight [V, H] and bias [V] of the head, cut to the ids that are sampled; tokens [n]; kept: their
    places, bool [B, T].
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    tokens: Tensor
    kept: Tensor

    def placed(self, values: Tensor) -> Tensor:
        """[n, ...] values of the kept tokens at their places, [B, T, ...], zero elsewhere."""
        out = values.new_zeros((*self.kept.shape, *values.shape[1:]))
        where = self.kept.reshape(*self.kept.shape, *(1,) * (values.ndim - 1)).expand_as(out)
        return out.masked_scatter(where, values)


def read_completions(
    model: Any,
    sequences: Tensor,
    attention_mask: Tensor,
    prompt_width: int,
    packing: str = "padded",
    vocabulary: int | None = None,
) -> Read:
    """One forward pass over left-padded sequences [B, P + T] with prompts of width P.

    The head sees only the positions that predict a kept completion token. packing: prefix, cached or padded;
    vocabulary: normalise over the first so many ids, those that are sampled; None for all rows of the head.
    """
    kept = attention_mask[:, prompt_width:].bool()
    tokens, width = sequences[:, prompt_width:][kept], prompt_width
    first = int(attention_mask[:, :width].any(0).long().argmax())  # columns of padding alone need no pass
    last = width + int(kept.sum(-1).max())
    rows = (sequences[:, first:last], attention_mask[:, first:last], width - first)
    if packing == "prefix":
        hidden = prefix_hidden(model, *rows)
    else:
        read = shared_hidden if packing == "cached" else full_hidden
        hidden = read(model, *rows)[kept[:, : last - width]]
    head = model.get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    if vocabulary is not None and vocabulary < len(weight):  # a slice's backward pass fills another whole gradient
        weight, bias = weight[:vocabulary], None if bias is None else bias[:vocabulary]
    return Read(hidden.to(weight.dtype), weight, bias, tokens, kept)  # a wrapper may hand it over in float32


def completion_log_probs(
    model: Any,
    sequences: Tensor,
    attention_mask: Tensor,
    prompt_width: int,
    temperature: float = 1.0,
    packing: str = "padded",
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of the completion tokens of left-padded sequences, in one forward pass.

    Arguments as in `read_completions`; [B, T] each, zero where attention_mask is 0.
    """
    read = read_completions(model, sequences, attention_mask, prompt_width, packing, vocabulary)
    values = token_log_probs(read.hidden, read.weight, read.tokens, temperature, head_bias=read.bias)
    log_probs, entropy = (read.placed(value) for value in values)
    return log_probs, entropy


def top_log_probs(read: Read, temperature: float, top: int | Tensor) -> tuple[Tensor, Tensor]:
    """Ids of the likeliest tokens at each place and their log π, [B, T, K] each, without gradient.

    top: how many, or the ids to read [B, T, K], zero in padding.
    """
    chunk = max(1, held_logits(read.hidden.device) // len(read.weight))
    ids, values = [], []
    with torch.no_grad():
        wanted = None if isinstance(top, int) else top[read.kept].split(chunk)
        for number, hidden in enumerate(read.hidden.split(chunk)):
            log_pi = logits_of(hidden, read.weight, read.bias, temperature).log_softmax(-1)
            ids.append(log_pi.topk(min(int(top), log_pi.shape[-1])).indices if wanted is None else wanted[number])
            values.append(log_pi.gather(-1, ids[-1]))
        return read.placed(torch.cat(ids)), read.placed(torch.cat(values))


def check_log_probs(model: Any, packing: str = "padded") -> None:
    """Raise `InputError` unless `completion_log_probs` agrees with the logits the model itself returns.

    Some families softly cap their logits or find positions in a way of their own, each under a config name of its own,
    and `completion_log_probs` would be wrong for them without a sign; so the two are compared on short sequences
    instead of reading names.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no output embedding; give a causal language model")
    tokens = torch.arange(4 * 6, device=model.device).view(4, 6) % model.config.get_text_config().vocab_size
    tokens[1::2, :3] = tokens[::2, :3]  # two prompts, each with two completions
    with torch.no_grad():
        log_pi = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        expected = log_pi[:, 2:-1].gather(-1, tokens[:, 3:, None]).squeeze(-1)
        found, _ = completion_log_probs(model, tokens, torch.ones_like(tokens), prompt_width=3, packing=packing)
    difference = (found - expected).abs()
    if model.dtype in (torch.float32, torch.float64):
        error, tolerance = difference.max().item(), 1e-3
    else:  # rounding differs between the two and moves single values by tenths; a missing scale moves all, by far more
        error, tolerance = difference.mean().item(), 0.1
    if not error < tolerance:
        raise InputError(
            f"log-probabilities of {type(model).__name__} computed from its hidden states ({packing}) differ from its "
            f"own by {error:.2g} (does it cap its logits?); choose a model whose logits come straight from its head"
        )
