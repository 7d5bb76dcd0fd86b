"""Drawing token sequences from a table of logits, and numbering them: pure functions that torch.compile can trace."""

from __future__ import annotations

import torch
from torch import Tensor


def powers(vocab_size: int, horizon: int) -> Tensor:
    """Place values of the T digits in base V, most significant first, int64 `[T]`."""
    return torch.tensor([vocab_size ** (horizon - 1 - t) for t in range(horizon)])


def number(tokens: Tensor, vocab_size: int) -> Tensor:
    """Base-V number of token sequences, first token most significant: int64 `[..., t]` -> `[...]`."""
    total = tokens[..., 0]
    for t in range(1, tokens.shape[-1]):
        total = total * vocab_size + tokens[..., t]
    return total


def draw(logits: Tensor, uniforms: Tensor, prefix: Tensor | None = None, given: Tensor | None = None) -> Tensor:
    """Sequences by inverting the cumulative distribution at every state, int64 `[*R, P, G, T]`.

    logits: `[*R, P, states, V]`; uniforms: `[*R, P, G, T]` in [0, 1); prefix: the first k tokens, or None; given: how
    many of them each sequence takes, `[*R, P, G]`, or None for all.
    """
    logits, vocab_size = logits.detach(), logits.shape[-1]  # detached: drawing a token has no gradient
    width = 0 if prefix is None else prefix.shape[-1]
    tokens: list[Tensor] = []
    state = torch.zeros_like(uniforms[..., 0], dtype=torch.int64)
    for t in range(uniforms.shape[-1]):
        if prefix is not None and t < width and given is None:
            tokens.append(prefix[..., t])
        else:  # only rows that are visited: a deep tree has many more states than samples
            visited = state.unsqueeze(-1).expand(*state.shape, vocab_size)
            rows = logits.gather(-2, visited) if t else logits[..., :1, :]
            token = _choose(rows.softmax(-1), uniforms[..., t])
            if prefix is not None and t < width and given is not None:
                token = torch.where(t < given, prefix[..., t], token)
            tokens.append(token)
        state = state * vocab_size + 1 + tokens[-1]  # the children of state s are V·s + 1 to V·s + V
    return torch.stack(tokens, -1)


def _choose(probs: Tensor, uniform: Tensor) -> Tensor:
    """The first token whose cumulative probability exceeds the uniform: `[..., V]` and `[...]` -> int64 `[...]`.

    Running sums over the vocabulary instead of a cumsum: compiled, everything is one loop over the samples.
    """
    sums = [probs[..., 0]]
    for k in range(1, probs.shape[-1]):
        sums.append(sums[-1] + probs[..., k])
    token = torch.zeros_like(uniform)
    for below in sums[:-1]:  # the last is divided to exactly 1, so no uniform reaches a token of probability zero
        token = token + (below / sums[-1] <= uniform)
    return token.to(torch.int64)
