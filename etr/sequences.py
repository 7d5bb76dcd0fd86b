"""Floor 1: what responses of a group share as sequences of tokens. Loops over T keep memory at `[*R, B, B]`."""

from __future__ import annotations

import torch
from torch import Tensor

from etr import alike


def dissimilarity(tokens: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """Mean of `set_distance` and `own_share`, `[*R, B]`, in [0, 1]."""
    return (set_distance(tokens, mask, group_ids) + own_share(tokens, mask, group_ids)) / 2


def set_distance(tokens: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """Mean over the other members of the group of the Jaccard distance 1 − |a ∩ b|/|a ∪ b| of their token sets."""
    common, sizes = shared_tokens(tokens, mask)
    union = sizes.unsqueeze(-1) + sizes.unsqueeze(-2) - common
    distance = 1 - common / union.clamp(min=1)
    others = alike.same(group_ids) & ~torch.eye(tokens.shape[-2], dtype=torch.bool, device=tokens.device)
    return torch.where(others, distance, 0.0).sum(-1) / others.sum(-1).clamp(min=1)


def own_share(tokens: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """Share of a response's tokens up to which no other member of the group began in the same way."""
    alone, begun = [], alike.same(group_ids).expand(*mask.shape[:-1], mask.shape[-2])
    for token, kept in zip(tokens.unbind(-1), mask.unbind(-1), strict=True):
        # Padding is like no token: where a response has ended, it no longer begins as a longer one does.
        begun = begun & alike.same(torch.where(kept, token, -1))
        alone.append(kept & (begun.sum(-1) == 1))
    count = torch.stack(alone, -1).sum(-1).double()
    return count / mask.sum(-1).clamp(min=1)


def shared_tokens(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """|a ∩ b| of the token sets of responses a and b, `[*R, B, B]`, and |a|, `[*R, B]`, in double precision."""
    far = torch.iinfo(tokens.dtype).max  # of no token, behind all of them
    ordered = torch.where(mask, tokens, far).sort(-1).values.contiguous()
    first = torch.ones_like(mask)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    first = first & (ordered != far)  # one place for each different token
    common = torch.zeros((*mask.shape[:-1], mask.shape[-2]), dtype=torch.float64, device=tokens.device)
    for t in range(tokens.shape[-1]):
        wanted = ordered[..., t].unsqueeze(-2).expand(common.shape).contiguous()  # the t-th token of a, asked of each b
        place = torch.searchsorted(ordered, wanted).clamp(max=tokens.shape[-1] - 1)
        here = ordered.gather(-1, place) == wanted  # [b, a]
        common += (here & first[..., t].unsqueeze(-2)).transpose(-1, -2)
    return common, first.sum(-1).double()


def from_end(mask: Tensor) -> Tensor:
    """Places of a response's tokens from its last kept one to its first; behind these, places of padding."""
    place = torch.arange(mask.shape[-1], device=mask.device)
    last = torch.where(mask, place, 0).amax(-1, keepdim=True)
    return torch.where(place <= last, last - place, place)


def shared_beginning(tokens: Tensor, signal: Tensor, mask: Tensor, group_ids: Tensor) -> Tensor:
    """True up to the first token that no response with signal > 0, or none with signal < 0, has at the same place.

    Responses without signal have no such beginning; masked tokens do not end it.
    """
    group, shared = alike.same(group_ids), []
    for token, here, kept in zip(tokens.unbind(-1), signal.unbind(-1), mask.unbind(-1), strict=True):
        equal = (group & alike.same(token)).to(here.dtype)
        right, wrong = (alike.total(equal, (side & kept).to(here.dtype)) > 0 for side in (here > 0, here < 0))
        shared.append(~kept | (right & wrong & (here != 0)))
    return torch.stack(shared, -1).cumprod(-1).bool() & mask
