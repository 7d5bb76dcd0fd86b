"""The exact model behind every toy environment: which complete sequences are rewarded, and how often.

A contextual bandit is a tree of horizon 1 whose tokens are the arms, so one model serves both environments.
A tabular policy has one row of V logits per prompt and non-terminal prefix ("state"), `[prompts, states, V]`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ExactModel:
    """P(reward = 1) of every complete sequence: `success`, float64 `[prompts, V**T]`.

    Sequences are numbered in base V, first token most significant. States are numbered level by level: the
    prefix of t tokens with base-V number n is state Σ_{k<t} V^k + n, so the root is state 0.
    Raises ValueError for sizes, shape, dtype or probabilities that do not fit.

    >>> model = ExactModel(2, 2, torch.tensor([[0.0, 0.0, 0.5, 1.0]], dtype=torch.float64))
    >>> model.states, model.optimal_value, model.uniform_value
    (3, 1.0, 0.375)
    >>> model.prefix_states(torch.tensor([1, 0])), model.sequence_index(torch.tensor([1, 0]))
    (tensor([0, 2]), tensor(2))
    """

    vocab_size: int
    horizon: int
    success: Tensor

    def __post_init__(self) -> None:
        if self.vocab_size < 2 or self.horizon < 1:
            raise ValueError(
                f"vocab_size {self.vocab_size} and horizon {self.horizon} leave nothing to choose; "
                "give at least 2 tokens (arms) and 1 step"
            )
        wanted = self.vocab_size**self.horizon
        if self.success.ndim != 2 or self.success.shape[0] == 0 or self.success.shape[1] != wanted:
            raise ValueError(
                f"success has shape {tuple(self.success.shape)}; give [prompts, {wanted}] "
                f"for vocab_size {self.vocab_size} and horizon {self.horizon}"
            )
        if self.success.dtype != torch.float64:
            raise ValueError(f"success has dtype {self.success.dtype}; give success.double()")
        bad = ~((self.success >= 0) & (self.success <= 1))  # also true for NaN
        if bool(bad.any()):
            prompt, index = bad.nonzero()[0].tolist()
            raise ValueError(
                f"success of prompt {prompt}, sequence (arm) {index} is "
                f"{self.success[prompt, index].item():g}; give probabilities in [0, 1]"
            )

    @property
    def prompts(self) -> int:
        """Number of prompts P."""
        return self.success.shape[0]

    @property
    def states(self) -> int:
        """Number of non-terminal prefixes, Σ_{t<T} V^t."""
        return self.offset(self.horizon)

    @property
    def optimal_value(self) -> float:
        """J* = mean over prompts of the best sequence's success probability."""
        return self.success.amax(-1).mean().item()

    @property
    def uniform_value(self) -> float:
        """J of the uniform policy."""
        return self.success.mean().item()

    def score(self, value: Tensor | float) -> Tensor:
        """J on the scale 0 (uniform policy or worse) to 1 (J*); 1 where every policy is optimal."""
        gap = self.optimal_value - self.uniform_value  # between equal arms it may round to 1e-17
        value = torch.as_tensor(value, dtype=torch.float64)
        return ((value - self.uniform_value) / gap).clamp(0.0, 1.0) if gap > 1e-12 else torch.ones_like(value)

    def offset(self, depth: int) -> int:
        """First state of a level: the number of prefixes shorter than `depth`."""
        return sum(self.vocab_size**t for t in range(depth))

    def sequence_index(self, sequences: Tensor) -> Tensor:
        """Number of each complete sequence: int64 `[..., T]` -> `[...]`."""
        self._check_tokens(sequences)
        index = torch.zeros_like(sequences[..., 0])
        for t in range(self.horizon):
            index = index * self.vocab_size + sequences[..., t]
        return index

    def prefix_states(self, sequences: Tensor) -> Tensor:
        """State in which each token was chosen: int64 `[..., T]` -> `[..., T]`."""
        index = self.sequence_index(sequences)
        depths = range(self.horizon)
        return torch.stack([self.offset(t) + index // self.vocab_size ** (self.horizon - t) for t in depths], -1)

    def sample(self, logits: Tensor, uniforms: Tensor) -> Tensor:
        """Sequences drawn from a tabular softmax policy by inverting its cumulative distribution.

        logits: `[*R, P, states, V]`; uniforms: `[*R, P, G, T]` in [0, 1). Returns int64 `[*R, P, G, T]`.
        A pure function: the same uniforms give the same sequences.
        """
        if logits.shape[-3:] != (self.prompts, self.states, self.vocab_size):
            raise ValueError(
                f"logits have shape {tuple(logits.shape)}; "
                f"give [..., {self.prompts}, {self.states}, {self.vocab_size}] (prompts, states, tokens)"
            )
        _check_uniforms("uniforms", uniforms, (*logits.shape[:-2], *uniforms.shape[-2:-1], self.horizon))
        cdf = logits.detach().softmax(-1).cumsum(-1)  # detached: drawing a token has no gradient
        cdf = cdf / cdf[..., -1:]  # ends in exactly 1, so rounding can never select a token past the last
        number = torch.zeros_like(uniforms[..., 0], dtype=torch.int64)
        tokens = []
        for t in range(self.horizon):
            state = (self.offset(t) + number).unsqueeze(-1).expand(*number.shape, self.vocab_size)
            tokens.append((cdf.gather(-2, state) <= uniforms[..., t, None]).sum(-1))
            number = number * self.vocab_size + tokens[-1]
        return torch.stack(tokens, -1)

    def verify(self, sequences: Tensor, noise: Tensor) -> Tensor:
        """Rewards 1.0 where noise < success probability, else 0.0, in the dtype of `noise`.

        sequences: int64 `[*R, P, G, T]`; noise: `[*R, P, G]` in [0, 1). A pure function of both.
        """
        if sequences.ndim < 3 or sequences.shape[-3] != self.prompts:
            raise ValueError(
                f"sequences have shape {tuple(sequences.shape)}; give [..., {self.prompts}, group, {self.horizon}]"
            )
        _check_uniforms("noise", noise, tuple(sequences.shape[:-1]))
        prompt = torch.arange(self.prompts, device=sequences.device).unsqueeze(-1)
        return (noise < self.success[prompt, self.sequence_index(sequences)]).to(noise.dtype)

    def _check_tokens(self, sequences: Tensor) -> None:
        if sequences.ndim < 1 or sequences.shape[-1] != self.horizon or sequences.dtype != torch.int64:
            raise ValueError(
                f"sequences have shape {tuple(sequences.shape)} and dtype {sequences.dtype}; "
                f"give int64 tokens of shape [..., {self.horizon}]"
            )
        bad = (sequences < 0) | (sequences >= self.vocab_size)
        if bool(bad.any()):
            where = bad.nonzero()[0].tolist()
            raise ValueError(
                f"token {sequences[tuple(where)].item()} at index {where} is outside the vocabulary; "
                f"give tokens from 0 to {self.vocab_size - 1}"
            )


def _check_uniforms(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape or not values.is_floating_point():
        raise ValueError(
            f"{name} have shape {tuple(values.shape)} and dtype {values.dtype}; "
            f"give floating point numbers of shape {shape}"
        )
    bad = ~((values >= 0) & (values < 1))  # also true for NaN
    if bool(bad.any()):
        where = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} at index {where} is {values[tuple(where)].item():g}; "
            "give uniform numbers in [0, 1), as torch.rand does"
        )
