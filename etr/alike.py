"""Floor 1: what responses have in common, two by two: bool `[*R, B, B]`, and counts from it."""

from __future__ import annotations

from torch import Tensor


def same(*labels: Tensor) -> Tensor:
    """True at (i, j) where responses i and j agree in all `labels`, `[B]` or `[*R, B]` each; also true at (i, i)."""
    equal = [label.unsqueeze(-1) == label.unsqueeze(-2) for label in labels]
    found = equal[0]
    for more in equal[1:]:
        found = found & more
    return found


def total(pairs: Tensor, values: Tensor) -> Tensor:
    """Σ_j pairs[i, j]·values[j], `[*R, B]`."""
    return (pairs.to(values.dtype) @ values.unsqueeze(-1)).squeeze(-1)


def count(pairs: Tensor, like: Tensor) -> Tensor:
    """With how many responses response i is paired, `[*R, B]`, in the dtype of `like`."""
    return pairs.sum(-1).to(like.dtype).expand_as(like)


def answer_shares(clusters: Tensor, group_ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """f_i = share of the group that gave the answer of response i, and how many gave it, `[*R, B]` each."""
    group = same(group_ids)
    members = count(group & same(clusters), like)
    return members / count(group, like), members
