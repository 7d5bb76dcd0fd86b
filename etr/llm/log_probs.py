"""Log-probabilities and entropies of sampled tokens without ever holding the logits of a whole batch.

With a vocabulary of 50k to 150k, float32 logits [N, V] are the largest tensors of training by far. Here the forward
pass keeps two numbers per token, log-sum-exp and entropy, and the backward pass computes the logits once more, in
blocks of the vocabulary: each block of the head's gradient is then one matrix product, written once.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits held at once: 64 MB of float32 on a CPU, where more was not faster, and 512 MB on a GPU.
HELD = {"cpu": 2**24}
HELD_ON_GPU = 2**27


def held_logits(device: torch.device) -> int:
    """How many logits to hold at once."""
    return HELD.get(device.type, HELD_ON_GPU)


def token_log_probs(
    hidden: Tensor,
    head_weight: Tensor,
    tokens: Tensor,
    temperature: float = 1.0,
    *,
    head_bias: Tensor | None = None,
    chunk: int | None = None,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """log π(token) and the entropy of π, where π = softmax((W h + b) / temperature), at least in float32.

    Shapes: hidden [N, H], head_weight [V, H], head_bias [V], tokens [N] -> log_probs [N], entropy [N] (nats, over the
    full vocabulary). The log-probabilities equal `log_softmax` over the model's own logits bit for bit. chunk: hold the
    logits of so many tokens at once, by default as many as fit into `HELD`; with_entropy: False returns zeros for it.

    Gradients flow through both outputs, and entropy's costs nothing unless it is asked for. With logits x = (W h + b) /
    temperature, p = π and H its entropy, ∂ log π(token) / ∂x = onehot(token) − p and ∂H / ∂x = −p (log p + H).
    """
    held = held_logits(hidden.device) if chunk is None else chunk * head_weight.shape[0]
    arguments = (hidden, head_weight, head_bias, tokens, temperature, held, with_entropy)
    outputs: tuple[Tensor, Tensor] = _TokenLogProbs.apply(*arguments)  # type: ignore[no-untyped-call]
    return outputs


class _TokenLogProbs(torch.autograd.Function):
    """Forward in chunks of tokens, so that each row of logits is whole; backward in blocks of the vocabulary."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        temperature: float,
        held: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        chunk = max(1, held // weight.shape[0])
        parts = [
            _chunk(logits_of(h, weight, bias, temperature), t, with_entropy)
            for h, t in zip(hidden.split(chunk), tokens.split(chunk), strict=True)
        ]
        log_probs, entropy, log_sum = (torch.cat(values) for values in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, bias, tokens, log_sum, entropy)
        ctx.temperature, ctx.held = temperature, held
        ctx.set_materialize_grads(False)  # so that a gradient of entropy that nobody asks for is None
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_log_probs: Tensor | None, d_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, log_sum, entropy = ctx.saved_tensors
        temperature, (for_hidden, for_weight, for_bias) = ctx.temperature, ctx.needs_input_grad[:3]
        d_hidden = torch.zeros_like(hidden, dtype=log_sum.dtype) if for_hidden else None  # a sum over blocks
        d_weight = torch.empty_like(weight) if for_weight else None
        d_bias = torch.empty_like(bias) if for_bias else None
        if d_log_probs is None:
            d_log_probs = torch.zeros_like(log_sum)
        rows, block = torch.arange(len(tokens), device=tokens.device), max(1, ctx.held // max(1, len(tokens)))
        for start in range(0, len(weight), block):
            part = slice(start, start + block)
            w, b = weight[part], None if bias is None else bias[part]
            log_pi = logits_of(hidden, w, b, temperature).sub_(log_sum[:, None])
            gradient = _smooth_gradient(log_pi, entropy, d_log_probs, d_entropy)
            # A token lies in one block only; to the others it adds 0 at their edge, which spares a wait for the GPU.
            column = (tokens - start).clamp(0, len(w) - 1)
            gradient[rows, column] += d_log_probs * (tokens == start + column)
            if temperature != 1.0:
                gradient.div_(temperature)
            if d_bias is not None:
                d_bias[part] = gradient.sum(0)
            gradient = gradient.to(hidden.dtype)
            if d_weight is not None:
                torch.mm(gradient.T, hidden, out=d_weight[part])
            if d_hidden is not None:
                d_hidden.add_(gradient @ w)
        return None if d_hidden is None else d_hidden.to(hidden.dtype), d_weight, d_bias, None, None, None, None


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float) -> Tensor:
    """The model's own logits over the temperature, then raised to float32; a fresh tensor."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits.div_(temperature)


def _chunk(logits: Tensor, tokens: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """log π(token), entropy (or zero) and log-sum-exp of a chunk of tokens; overwrites the logits."""
    chosen = logits.gather(-1, tokens[:, None]).squeeze(-1)
    log_pi = torch.log_softmax(logits, dim=-1, out=logits)
    log_probs = log_pi.gather(-1, tokens[:, None]).squeeze(-1)
    entropy = -log_pi.exp().mul_(log_pi).sum(-1) if with_entropy else torch.zeros_like(log_probs)
    return log_probs, entropy, chosen - log_probs


def _smooth_gradient(log_pi: Tensor, entropy: Tensor, d_log_probs: Tensor, d_entropy: Tensor | None) -> Tensor:
    """Gradient at a block of logits but for the one-hot part, −p (g + e (log p + H)), [N, block]; overwrites log π."""
    if d_entropy is None:
        return log_pi.exp_().mul_(-d_log_probs[:, None])
    p = log_pi.exp()
    factor = log_pi.add_(entropy[:, None]).mul_(d_entropy[:, None]).add_(d_log_probs[:, None])
    return p.mul_(factor.neg_())
