"""Objectives with one defect each, for the tests of the scorecard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import Batch, Region, aggregation
from etr.objective import Reduction
from etr.objectives.grpo import GRPO


@dataclass(frozen=True)
class Sound(GRPO):
    """No defect: what fails here is the suite's own."""

    reduces_to: ClassVar[Reduction | None] = None  # GRPO's would say that the defect must change nothing


class FlippedSign(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return -super().surrogate(batch, log_ratio, region)


class ExcludesOne(Sound):
    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        return Region(log_ratio.new_tensor(0.8), log_ratio.new_tensor(0.99))


class LocalMean(Sound):
    def aggregate(self, x: Tensor, mask: Tensor, denominator: Tensor | float) -> Tensor:
        return aggregation.aggregate(x, mask, "local-token-mean", 1)


class BatchStatistic(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        weight = 0.5 + batch.token_advantages.abs().mean((-2, -1), keepdim=True)
        return super().surrogate(batch, log_ratio, region) * weight


class NotANumber(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return super().surrogate(batch, log_ratio, region) + 0.0 * (2 * (batch.log_probs - batch.old_log_probs)).exp()


class SquaredRatio(Sound):
    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"gradient_follows_advantage": "it pulls the ratio back to 1"}

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        penalty = (log_ratio.exp() - 1) ** 2 * batch.token_advantages.abs()
        return super().surrogate(batch, log_ratio, region) - 0.5 * penalty


class NotANumberWhenLong(Sound):
    """The loss is NaN, its gradient is not."""

    def regularizer(self, batch: Batch) -> Tensor:
        return torch.full_like(batch.log_probs, float("nan") if batch.log_probs.shape[-1] > 5 else 0.0)


class FlippedRegularizer(Sound):
    def regularizer(self, batch: Batch) -> Tensor:
        return 3 * batch.log_probs * batch.token_advantages


class SquaredWhereClear(Sound):
    """Says nothing for batches whose advantages are small, and grows with the cube of the ratio in others."""

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        size = batch.token_advantages.abs().mean((-2, -1), keepdim=True)
        gate = size > size.amin() if size.numel() > 1 else torch.ones_like(size)
        return (3 * log_ratio).clamp(-60, 60).exp() * batch.token_advantages / 3 * gate


class OnlyStale(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return torch.where(log_ratio == 0, 0.0, log_ratio.exp()) * batch.token_advantages


class NoGradient(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        return 0.0 * super().surrogate(batch, log_ratio, region)


class Cancels(Sound):
    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"pessimistic": "its rounding also raises the objective, by 1e-10 of it"}

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        one = 1 + ((1e6 + batch.old_log_probs) - 1e6 - batch.old_log_probs)  # in single precision off by 0.03
        return one * super().surrogate(batch, log_ratio, region)


class Slow(Sound):
    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        if log_ratio.shape[-1] < 100:  # the answers of toys are short, and not what this is about
            return super().surrogate(batch, log_ratio, region)
        rows = []
        for x, a in zip(log_ratio, batch.advantages, strict=True):
            tokens = [torch.minimum(t.exp() * a, torch.clamp(t.exp(), region.low, region.high) * a) for t in x]
            rows.append(torch.stack(tokens))
        return torch.stack(rows)


class Raises(Sound):
    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        raise RuntimeError("no region today")
