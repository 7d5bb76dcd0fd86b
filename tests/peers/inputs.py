"""Inputs that are made of a case in the same way for every peer."""

from __future__ import annotations

import torch
from torch import Tensor

Case = dict[str, Tensor]


def advantages_of(name: str, case: Case) -> Tensor:
    """Advantages `[B]`, or `[B, T]` of any sign for the records named /token-advantages."""
    return case["values"] - 0.5 if name.endswith("/token-advantages") else case["advantages"]


def full_log_probs(log_probs: Tensor) -> Tensor:
    """A vocabulary of four tokens, `[B, T, 4]`: the sampled one first, the rest shared equally."""
    rest = ((-log_probs.exp()).log1p() - torch.tensor(3.0, dtype=log_probs.dtype).log()).unsqueeze(-1)
    return torch.cat([log_probs.unsqueeze(-1), rest.expand(*rest.shape[:-1], 3)], -1)


def sum_of_squares(log_probs: Tensor) -> Tensor:
    """Σ_v π(v)² of that vocabulary."""
    return full_log_probs(log_probs).exp().square().sum(-1)
