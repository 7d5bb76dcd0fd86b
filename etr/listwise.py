"""Floor 2: what objectives share whose loss is one of a whole group: its answers compete with one another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from etr.batch import Batch
from etr.objective import Scope
from etr.shaping import Shaping


class Listwise(Shaping):
    """A mixin: `counted` makes the advantages, of those answers of a group that have tokens."""

    undivided = "group"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    @property
    def scope(self) -> Scope:
        return "batch"

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {
            "pessimistic": "the value is the loss of the group, not a bound on r·A",
            "splitting_is_exact": "answers are compared within their group, so a group must not be split",
        }

    def counted(self, rewards: Tensor, group_ids: Tensor, there: Tensor) -> Tensor:
        """A `[*R, B]` of the answers that are `there`, bool `[*R, B]`; 0 for the others."""
        raise NotImplementedError

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return self.counted(rewards, group_ids, torch.ones_like(rewards, dtype=torch.bool))

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        found = self.counted(batch.rewards, batch.group_ids, batch.response_mask.any(-1))
        return found.to(batch.advantages.dtype)
