"""Floor 2: what objectives that have a say in the sampling share: demonstrations in a batch, and their weight."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from etr import ratios, surrogates
from etr.batch import Batch, Region
from etr.groups import Groups
from etr.objective import Category, State
from etr.shaping import Mixin


class Sampling(Mixin):
    """A mixin: an objective with `start` (`etr.samplers`). By its needs, trainers that cannot sample so refuse it."""

    category: ClassVar[Category] = "sampling"

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"resets"}

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        if any(isinstance(getattr(self, field.name), Tensor) for field in dataclasses.fields(self)):
            raise TypeError("rounds of sampling are the same for all runs; give numbers and not a tensor of them")
        return super().init_state(run_shape, device)


class Demonstrated(Sampling):
    """A mixin: given tokens that are trained on are marked by the column "demonstrated", 1 or 0 `[*R, B, T]`."""

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "demonstrated")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        place = torch.arange(batch.response_mask.shape[-1], device=batch.response_mask.device)
        marked = (place < given(batch).unsqueeze(-1)) & batch.response_mask
        return super().prepare(batch.with_columns(demonstrated=marked.to(batch.advantages.dtype)), state)

    def demonstrated(self, batch: Batch) -> Tensor:
        """True on given tokens, `[*R, B, T]`."""
        return batch.columns["demonstrated"] > 0

    def helped(self, batch: Batch) -> Tensor:
        """True on all tokens of answers of which some were given, `[*R, B, T]`."""
        some = self.demonstrated(batch).any(-1, keepdim=True)
        return some.expand(batch.response_mask.shape)


class OffPolicy(Demonstrated):
    """A mixin: answers with given tokens are weighted by f(π/μ), f(x) = x/(x + λ), μ whoever made them.

    The objective of their tokens is min(f·A, clip(f, low, high)·A), so ∂/∂log π = A·λx/(x + λ)² with x = π/μ: a token
    that is unlikely still learns. f is LUFFY's (2504.14945), and so is λ = 0.1, the default of its users here.
    """

    damping: float  # λ

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rollout_log_probs"}

    def ratio(self, batch: Batch) -> Tensor:
        assert batch.rollout_log_probs is not None  # in `needs`
        limit = ratios.LOG_RATIO_LIMIT
        off = (batch.log_probs - batch.rollout_log_probs).clamp(-limit, limit)
        return torch.where(self.helped(batch), off, super().ratio(batch))

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        shaped = log_ratio - torch.log(log_ratio.exp() + self.damping)
        helped = surrogates.pessimistic_clip(shaped, batch.token_advantages, region)
        return torch.where(self.helped(batch), helped, super().surrogate(batch, log_ratio, region))


def given(batch: Batch) -> Tensor:
    """How many first tokens of each answer were given, `[*R, B]`; 0 where no sampler said."""
    known = batch.columns.get("given")
    return torch.zeros_like(batch.response_mask[..., 0], dtype=torch.int64) if known is None else known


def center_among(rewards: Tensor, group_ids: Tensor, among: Tensor) -> Tensor:
    """R − mean `[*R, B]` over the answers of a group in `among` (bool); 0 elsewhere, and exactly 0 if all are equal."""
    groups = Groups(rewards, group_ids)
    count = groups.sum(among.to(rewards.dtype)).clamp(min=1)
    low, high = (torch.where(among, rewards, bound) for bound in (torch.inf, -torch.inf))
    centred = rewards - groups.sum(torch.where(among, rewards, 0.0)) / count
    return torch.where(among & (groups.least(low) < groups.largest(high)), centred, 0.0)


def zscore_among(rewards: Tensor, group_ids: Tensor, among: Tensor) -> Tensor:
    """Group z-scores `[*R, B]` of the answers in `among` (bool) against each other; 0 elsewhere, and for one alone."""
    groups, centred = Groups(rewards, group_ids), center_among(rewards, group_ids, among)
    count = groups.sum(among.to(rewards.dtype)).clamp(min=1)
    std = (groups.sum(centred.square()) / count).sqrt()
    return torch.where(std > 0, centred / torch.where(std > 0, std, 1.0), 0.0)


def share_of(size: int, share: float) -> int:
    """How many of `size` answers a share is: the nearest whole number, at least 1 and below `size`."""
    return min(size - 1, max(1, round(share * size)))
