"""Floor 2: objectives whose paper changes the advantages, with more at hand than rewards and groups."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from etr.batch import Batch
from etr.objective import Objective, State


class Shaping(Objective):
    """A mixin: `shape` turns the advantages of a whole rollout batch into others, once, before it is split.

        class EMPG(Shaping, GRPO): ...

    The loss is the other base's, with the shaped advantages in the place of its own.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "shaped")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        with torch.no_grad():
            advantages = self.shape(batch.clean())
        done = torch.ones_like(batch.response_mask[..., 0], dtype=advantages.dtype)  # says so to the loss
        return dataclasses.replace(batch, advantages=advantages).with_columns(shaped=done), state

    def shape(self, batch: Batch) -> Tensor:
        """A clean whole batch to advantages, `[*R, B]` or `[*R, B, T]`."""
        raise NotImplementedError
