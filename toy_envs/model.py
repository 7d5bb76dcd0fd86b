"""The exact model behind every toy environment: what each complete sequence earns, and how often.

A contextual bandit is a tree of horizon 1 whose tokens are the arms, so one model serves every environment.
A tabular policy has one row of V logits per prompt and non-terminal prefix ("state"), `[prompts, states, V]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from toy_envs import checks
from toy_envs.sampling import draw, number, powers


@dataclass(frozen=True, eq=False)
class ExactModel:
    """P(right) of every complete sequence, `success`, and what else of it a method may want to see.

    vocab_size V, horizon T; success: float64 `[P, V**T]`, the truth by which a policy is scored;
    verdict `[P, V**T]`: P(the verifier says 1), what training is paid with, by default the truth;
    components `[P, K, V**T]` with K positive scales: a reward of several parts, each 0 or 1 by its own chance,
    total Σ_k scale_k·part_k / Σ_k scale_k, and then the verdict is the expected total;
    clusters: int64 `[P, V**T]`, the final answer of each sequence; turns: the turn of each of the T tokens;
    prompt_tokens: int64 `[P, L]`, the prompts as text.

    Sequences are numbered in base V, first token most significant. States are numbered level by level: the
    prefix of t tokens with base-V number n is state Σ_{k<t} V^k + n, so the root is state 0.
    Functions take any leading run dimensions `*R`, are pure, and with `check=False` look at no data.
    Raises ValueError for sizes, shapes, dtypes or probabilities that do not fit.

    >>> model = ExactModel(2, 2, torch.tensor([[0.0, 0.0, 0.5, 1.0]], dtype=torch.float64))
    >>> model.states, model.optimal_value, model.uniform_value
    (3, 1.0, 0.375)
    >>> model.prefix_states(torch.tensor([1, 0])), model.sequence_index(torch.tensor([1, 0]))
    (tensor([0, 2]), tensor(2))
    """

    vocab_size: int
    horizon: int
    success: Tensor
    verdict: Tensor = field(default=None)  # type: ignore[assignment]  # filled in below, so that users find a tensor
    components: Tensor | None = None
    scales: tuple[float, ...] = ()
    clusters: Tensor | None = None
    turns: tuple[int, ...] | None = None
    prompt_tokens: Tensor | None = None

    def __post_init__(self) -> None:
        checks.check_sizes(self.vocab_size, self.horizon)
        sequences = self.vocab_size**self.horizon
        checks.check_probabilities("success", self.success, (-1, sequences))
        if self.components is not None:
            checks.check_probabilities("components", self.components, (self.prompts, -1, sequences))
        checks.check_scales(self.scales, self.components)
        object.__setattr__(self, "verdict", self._verdict())
        checks.check_probabilities("verdict", self.verdict, (self.prompts, sequences))
        if self.clusters is not None:
            checks.check_ids("clusters", self.clusters, (self.prompts, sequences))
        if self.turns is not None:
            checks.check_turns(self.turns, self.horizon)
        if self.prompt_tokens is not None:
            checks.check_ids("prompt_tokens", self.prompt_tokens, (self.prompts, -1))

    def _verdict(self) -> Tensor:
        if self.components is None:
            return self.success if self.verdict is None else self.verdict
        total = expected_total(self.components, self.scales)
        if self.verdict is not None and not torch.allclose(self.verdict, total):
            raise ValueError("verdict differs from the scaled sum of the components; leave it out")
        return total

    @property
    def prompts(self) -> int:
        """Number of prompts P."""
        return self.success.shape[0]

    @property
    def states(self) -> int:
        """Number of non-terminal prefixes, Σ_{t<T} V^t."""
        return self.offset(self.horizon)

    @property
    def noise_size(self) -> int:
        """Uniform numbers that decide one reward: K, or 1 without components."""
        return len(self.scales) or 1

    @property
    def optimal_value(self) -> float:
        """J* = mean over prompts of the best sequence's success probability."""
        return self.success.amax(-1).mean().item()

    @property
    def uniform_value(self) -> float:
        """J of the uniform policy."""
        return self.success.mean().item()

    @property
    def solutions(self) -> Tensor:
        """One best sequence per prompt, int64 `[P, T]` (the first of equals); hints are its prefixes."""
        best = self.success.argmax(-1, keepdim=True)
        return best // powers(self.vocab_size, self.horizon).to(best) % self.vocab_size

    def score(self, value: Tensor | float) -> Tensor:
        """J on the scale 0 (uniform policy or worse) to 1 (J*); 1 where every policy is optimal."""
        gap = self.optimal_value - self.uniform_value  # between equal arms it may round to 1e-17
        value = torch.as_tensor(value, dtype=torch.float64)
        return ((value - self.uniform_value) / gap).clamp(0.0, 1.0) if gap > 1e-12 else torch.ones_like(value)

    def offset(self, depth: int) -> int:
        """First state of a level: the number of prefixes shorter than `depth`."""
        return sum(self.vocab_size**t for t in range(depth))

    def sequence_index(self, sequences: Tensor, check: bool = True) -> Tensor:
        """Number of each complete sequence: int64 `[..., T]` -> `[...]`."""
        if check:
            checks.check_tokens(sequences, self.vocab_size, self.horizon)
        return number(sequences, self.vocab_size)

    def prefix_states(self, sequences: Tensor, check: bool = True) -> Tensor:
        """State in which each token was chosen: int64 `[..., T]` -> `[..., T]`."""
        if check:
            checks.check_tokens(sequences, self.vocab_size, self.horizon)
        states = [torch.zeros_like(sequences[..., 0])]
        for t in range(self.horizon - 1):  # the children of state s are V·s + 1 to V·s + V
            states.append(states[-1] * self.vocab_size + 1 + sequences[..., t])
        return torch.stack(states, -1)

    def sample(
        self,
        logits: Tensor,
        uniforms: Tensor,
        prefix: Tensor | None = None,
        check: bool = True,
        given: Tensor | None = None,
    ) -> Tensor:
        """Sequences of a tabular softmax policy by inverting its cumulative distribution, int64 `[*R, P, G, T]`.

        logits: `[*R, P, states, V]`; uniforms: `[*R, P, G, T]` in [0, 1), the same ones give the same sequences;
        prefix: int64 `[*R, P, G, k]`, first k < T tokens that are given instead of drawn (a hint, a branch);
        given: int64 `[*R, P, G]`, how many of the k each sequence takes, None for all; with it k may also be T, for
        sequences that are given whole.
        """
        if check:
            rows = (self.prompts, self.states, self.vocab_size)
            if logits.shape[-3:] != rows:
                raise ValueError(
                    f"logits have shape {tuple(logits.shape)}; "
                    f"give [..., {self.prompts}, {self.states}, {self.vocab_size}] (prompts, states, tokens)"
                )
            shape = (*logits.shape[:-2], *uniforms.shape[-2:-1], self.horizon)
            checks.check_uniforms("uniforms", uniforms, shape)
            checks.check_prefix(prefix, given, shape, self.vocab_size)
        return draw(logits, uniforms, prefix, given)

    def verify(self, sequences: Tensor, noise: Tensor, check: bool = True) -> Tensor:
        """Rewards in [0, 1] in the dtype of `noise`: 1.0 where noise < verdict, else 0.0; with components their total.

        sequences: int64 `[*R, P, G, T]`; noise: `[*R, P, G, noise_size]` in [0, 1). Returns `[*R, P, G]`.
        """
        parts = self.outcomes(sequences, noise, check)
        if self.components is None:
            return parts[..., 0]
        total = sum(self.scales)
        return sum((parts[..., k] * (scale / total) for k, scale in enumerate(self.scales)), parts.new_zeros(()))

    def outcomes(self, sequences: Tensor, noise: Tensor, check: bool = True) -> Tensor:
        """Each component's own 0.0 or 1.0 (the verdict where there are none), `[*R, P, G, noise_size]`."""
        if check:
            checks.check_groups(sequences, self.prompts, self.horizon)
            checks.check_uniforms("noise", noise, (*sequences.shape[:-1], self.noise_size))
        index = self.sequence_index(sequences, check)
        chances = self.verdict.unsqueeze(1) if self.components is None else self.components
        flat = chances.movedim(1, -1).flatten(0, 1)  # [P·V^T, noise_size]
        return (noise < flat[self._row(index)].to(noise.dtype)).to(noise.dtype)

    def answers(self, sequences: Tensor, check: bool = True) -> Tensor:
        """Cluster of each sequence, `[*R, P, G, T]` -> `[*R, P, G]`; every sequence its own where none are given."""
        if check:
            checks.check_groups(sequences, self.prompts, self.horizon)
        index = self.sequence_index(sequences, check)
        return index if self.clusters is None else self.clusters.flatten()[self._row(index)]

    def _row(self, index: Tensor) -> Tensor:
        """Place of sequence `index`, `[*R, P, G]`, in a table `[P, V**T]` laid out flat."""
        prompt = torch.arange(self.prompts, device=index.device).unsqueeze(-1)
        return prompt * self.success.shape[1] + index


def expected_total(components: Tensor, scales: tuple[float, ...]) -> Tensor:
    """Σ_k scale_k·P(part_k = 1) / Σ_k scale_k: components float64 `[P, K, N]` -> `[P, N]`."""
    weights = components.new_tensor(scales)
    return ((weights[:, None] * components).sum(1) / weights.sum()).clamp(max=1.0)  # rounding may pass 1
