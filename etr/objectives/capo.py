"""CAPO: leave out the tokens whose next step a second-order model of the last layer calls too long.

One step η·G of the output layer moves the logits of token t by η·u, u = G·h_t. With v = e_a − π, F = diag(π) − ππᵀ:

    m_H = η·A·vᵀu + ½η²·A·[(vᵀu)² − uᵀFu]      change of A·r to second order
    m_F = ½η²·(vᵀu)²                           half the squared change of log π(a) to first order
    keep t  iff  m_F < τ_F  and  |m_H| < τ_H   (`symmetric`; else 0 ≤ m_H < τ_H);   then GRPO on the kept tokens

Paper: Melo, Abate, Gal, "Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning",
2510.00819. Defaults τ_F = 1e-4 (`fisher_limit`), τ_H = 0.01 (`objective_limit`) are the authors' script (for
Dr. GRPO 1e-3 and 5e-4, for REINFORCE 1e-5 and 0.1); distributions are cut at the likeliest tokens, as theirs.
m_H and m_F are the paper's, u is OURS, so the evidence is third-party: in a tabular softmax h is one-hot in the state,
so hᵀh' is 1 for tokens behind the same prefix of the same prompt and 0 otherwise, and u = Σ A'·v'/N over the batch's
tokens in the same state, in closed form. Exact for tables with no more tokens than `top_log_probs` has. An LLM's h
overlap between prefixes: there this keeps only the part of G that comes from the same prefix, an approximation. G is
the plain gradient (mean over N tokens); a step of Adam is not modelled. η = 0.2 (`step`) is ours: it leaves out up to
2 per cent of the tokens at the start of toy training. (From 0.4 on the rare right answers, whose m_H is largest, go
first, and a bandit is no longer learned.)
Differs from GRPO: the mask. Not CAPO of contrastive or credit-assignment papers with the same letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, selection
from etr.batch import Batch
from etr.hashing import PRIME, congruential
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("capo")
@dataclass(frozen=True)
class CAPO(Shaping, GRPO):
    """GRPO on the tokens with m_F < τ_F and |m_H| < τ_H."""

    step: float = 0.2
    fisher_limit: float = 1e-4
    objective_limit: float = 0.01
    symmetric: bool = True

    paper: ClassVar[Paper] = Paper("Stabilizing Policy Gradients in LLM Reasoning (CAPO)", "2510.00819", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"fisher_limit": 1e9, "objective_limit": 1e9, "symmetric": True}
    )
    examples = ({"fisher_limit": 1e-3, "objective_limit": 0.1, "symmetric": False},)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "step", "fisher_limit", "objective_limit")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"tokens", "group_ids", "top_log_probs"}

    def shape(self, batch: Batch) -> Tensor:
        fisher, change = self.moments(batch)
        fits = change.abs() if self.symmetric else torch.where(change >= 0, change, torch.inf)
        kept = (fisher < self.fisher_limit) & (fits < self.objective_limit)
        weights = selection.weights(kept, batch.response_mask, self.aggregation)
        return batch.token_advantages * weights.to(batch.advantages.dtype)

    def moments(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """m_F and m_H of every token, `[*R, B, T]`."""
        assert batch.top_log_probs is not None and batch.top_tokens is not None  # in `needs`
        assert batch.tokens is not None and batch.group_ids is not None  # in `needs`
        mask, chances = batch.response_mask, batch.top_log_probs.double().exp()
        advantages = torch.where(mask, batch.token_advantages.double(), 0.0)
        v = (batch.top_tokens == batch.tokens.unsqueeze(-1)).double() - chances
        number = mask.sum((-2, -1)).clamp(min=1)[..., None, None, None]
        where = states(batch.tokens, batch.group_ids, mask)
        u = self.step * _sums(advantages.unsqueeze(-1) * v, where) / number
        first, mean = (v * u).sum(-1), (chances * u).sum(-1)
        curved = (chances * u.square()).sum(-1) - mean.square()
        change = advantages * first + advantages * (first.square() - curved) / 2
        return first.square() / 2, change


def states(tokens: Tensor, group_ids: Tensor, mask: Tensor) -> Tensor:
    """A number for the state before each token, `[*R, B, T]`: a hash of its prompt and of the tokens before it."""
    one = group_ids.long().expand(mask.shape[:-1])
    two, found = one, []
    for token, kept in zip(tokens.long().unbind(-1), mask.unbind(-1), strict=True):
        found.append(one * PRIME + two)
        one = torch.where(kept, congruential(one, 48271, token + 1), one)
        two = torch.where(kept, congruential(two, 16807, token + 11), two)
    return torch.stack(found, -1)


def _sums(values: Tensor, where: Tensor) -> Tensor:
    """Sums of `values` `[*R, B, T, K]` over equal numbers in `where` `[*R, B, T]`, at each one's own place."""
    flat = where.flatten(-2)
    ordered, order = flat.sort(-1)
    first = torch.cat([torch.zeros_like(ordered[..., :1]), (ordered.diff(dim=-1) != 0).long()], -1)
    dense = torch.empty_like(flat).scatter_(-1, order, first.cumsum(-1))  # 0, 1, 2 … in place of the hashes
    index = dense.unsqueeze(-1).expand(*flat.shape, values.shape[-1])
    rows = values.flatten(-3, -2)
    summed = torch.zeros_like(rows).scatter_add_(-2, index, rows).gather(-2, index)
    found: Tensor = summed.unflatten(-2, where.shape[-2:])
    return found
