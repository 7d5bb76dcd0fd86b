"""Floor 2: objectives whose paper changes the advantages, with more at hand than rewards and groups."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from etr.batch import Batch
from etr.objective import Objective, State

if TYPE_CHECKING:
    Mixin = Objective
else:  # inheriting Objective's fields it would, as the first base, put their defaults in the place of the second's
    Mixin = object


class Shaping(Mixin):
    """A mixin: `shape` turns the advantages of a whole rollout batch into others, once, before it is split.

        class EMPG(Shaping, GRPO): ...

    The loss is the other base's, with the shaped advantages in the place of its own.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, f"{self.name}_shaped")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        with torch.no_grad():
            advantages = self.shape(batch.clean())
        done = torch.ones_like(batch.response_mask[..., 0], dtype=advantages.dtype)  # says so to the loss
        return dataclasses.replace(batch, advantages=advantages).with_columns(**{f"{self.name}_shaped": done}), state

    def shape(self, batch: Batch) -> Tensor:
        """A clean whole batch to advantages, `[*R, B]` or `[*R, B, T]`."""
        raise NotImplementedError
