"""Floor 1: where the turns of a response begin and end. Turn numbers `[*R, B, T]` never fall along a response.

Between two turns may lie masked tokens (a tool's answer); what their turn number is does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor


def starts(turns: Tensor, mask: Tensor) -> Tensor:
    """True on the first kept token of each turn."""
    seen = torch.where(mask, turns, -1).cummax(-1).values
    before = torch.nn.functional.pad(seen[..., :-1], (1, 0), value=-1)
    return mask & (turns > before)


def ends(turns: Tensor, mask: Tensor) -> Tensor:
    """True on the last kept token of each turn."""
    most = 2**31 - 1  # above every turn, and exact in any type
    later = torch.where(mask, turns, most).flip(-1).cummin(-1).values.flip(-1)
    after = torch.nn.functional.pad(later[..., 1:], (0, 1), value=most)
    return mask & (turns < after)


def number(begins: Tensor) -> Tensor:
    """How many turns have begun up to and with each token, int64: 1 in the first turn."""
    return begins.cumsum(-1)


def at_start(values: Tensor, begins: Tensor) -> Tensor:
    """Each token gets the value on the first token of its turn (before the first turn: that of the first token)."""
    place = torch.arange(values.shape[-1], device=values.device)
    return values.gather(-1, torch.where(begins, place, 0).cummax(-1).values)


def at_next_start(values: Tensor, begins: Tensor) -> Tensor:
    """Each token gets the value on the first token of the next turn (0 in the last turn)."""
    length = values.shape[-1]
    place = torch.arange(length, device=values.device)
    first = torch.where(begins, place, length).flip(-1).cummin(-1).values.flip(-1)
    after = torch.nn.functional.pad(first[..., 1:], (0, 1), value=length)
    return torch.nn.functional.pad(values, (0, 1)).gather(-1, after)
