"""Floor 2: a buffer of past answers as tensors of the state, `[*R, C, ...]`; runs never mix.

Entries stand newest first. `prompt` is −1 where a place is empty. Prompts are numbered from 0 to below the number of
responses of a batch, as the toys number them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from etr.objective import State

LAST = 2**40  # sorts after every age


class Buffer(NamedTuple):
    """C past answers: tokens and log_probs `[*R, C, T]`, log-probs of the policy that made them; prompt, age `[*R, C]`,
    age in steps."""

    tokens: Tensor
    log_probs: Tensor
    prompt: Tensor
    age: Tensor

    def state(self) -> State:
        return {f"buffer_{name}": value for name, value in self._asdict().items()}

    def ranks(self) -> Tensor:
        """Place of each entry among those of its prompt, the oldest first, `[*R, C]`."""
        prompt = self.prompt.flip(-1)
        ordered, order = prompt.sort(stable=True, dim=-1)
        place = torch.arange(prompt.shape[-1], device=prompt.device).expand(prompt.shape)
        rank = place - torch.searchsorted(ordered.contiguous(), ordered.contiguous())
        return torch.zeros_like(prompt).scatter(-1, order, rank).flip(-1)

    def take(self, rank: int, prompts: int) -> tuple[Tensor, Tensor, Tensor]:
        """The entry of that rank of each prompt: is there one, bool `[*R, P]`; tokens and log-probs `[*R, P, T]`."""
        numbers = torch.arange(prompts, device=self.prompt.device).unsqueeze(-1)
        match = (self.prompt.unsqueeze(-2) == numbers) & (self.ranks() == rank).unsqueeze(-2)
        place = match.to(torch.uint8).argmax(-1).unsqueeze(-1).expand(*match.shape[:-1], self.tokens.shape[-1])
        return match.any(-1), self.tokens.gather(-2, place), self.log_probs.gather(-2, place)

    def older(self, used: Tensor, most: int) -> Buffer:
        """One step later: without the `used[p]` oldest entries of prompt p, `[*R, B]`, and those older than `most`."""
        spent = self.ranks() < used.gather(-1, self.prompt.clamp(min=0))
        gone = spent | (self.age + 1 >= most) | (self.prompt < 0)
        return self._replace(prompt=torch.where(gone, -1, self.prompt), age=self.age + 1)

    def with_new(self, tokens: Tensor, log_probs: Tensor, prompt: Tensor, kept: Tensor) -> Buffer:
        """The newest C with the `kept` answers of a batch: tokens, log_probs `[*R, B, T]`, prompt, kept `[*R, B]`."""
        width = max(tokens.shape[-1], self.tokens.shape[-1])
        new = Buffer(tokens, log_probs, torch.where(kept, prompt, -1), torch.zeros_like(prompt))
        wide = [b._replace(tokens=_wide(b.tokens, width), log_probs=_wide(b.log_probs, width)) for b in (new, self)]
        both = Buffer(
            torch.cat([b.tokens for b in wide], -2),
            torch.cat([b.log_probs.to(self.log_probs.dtype) for b in wide], -2),
            *(torch.cat(pair, -1) for pair in ((new.prompt, self.prompt), (new.age, self.age))),
        )
        key = torch.where(both.prompt < 0, LAST, both.age)
        order = key.sort(stable=True, dim=-1).indices[..., : self.prompt.shape[-1]]
        long = order.unsqueeze(-1).expand(*order.shape, width)
        return Buffer(
            both.tokens.gather(-2, long),
            both.log_probs.gather(-2, long),
            both.prompt.gather(-1, order),
            both.age.gather(-1, order),
        )


def empty(run_shape: tuple[int, ...], capacity: int, device: torch.device) -> Buffer:
    """Places for `capacity` answers; they become as wide as the first batch."""
    rows = (*run_shape, capacity)
    nothing = torch.zeros(*rows, 0, dtype=torch.int64, device=device)
    nobody = torch.full(rows, -1, dtype=torch.int64, device=device)
    return Buffer(nothing, nothing.double(), nobody, torch.zeros_like(nobody))


def buffer_in(state: State) -> Buffer:
    """The buffer of a state."""
    return Buffer(*(state[f"buffer_{name}"] for name in Buffer._fields))


def _wide(values: Tensor, width: int) -> Tensor:
    return pad(values, (0, width - values.shape[-1]))
