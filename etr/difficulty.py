"""Floor 1: prompts by difficulty, and what ARES (2025) pays for uncertain tokens at each: 0 easy, 1 medium, 2 hard."""

from __future__ import annotations

import torch
from torch import Tensor

from etr import masked

LEVELS = 3
MARGIN, HUBER, SOFT = (0.15, 0.25, 0.35), (2.0, 3.0, 4.0), (2.0, 2.5, 3.0)  # c, k and T of `entropy_reward`
WRONG = (0.6, 0.8, 1.0)
ROUNDING = 1e-6  # of an accuracy that is a bound exactly


class Levels:
    """Difficulty of each response's prompt by the accuracy of its group, `[*R, B]`; statistics `[*R, 3]` of the levels.

    of: level of each response, int64 `[*R, B]`; seen: which levels have a response.
    """

    def __init__(self, accuracy: Tensor, easy: float, medium: float) -> None:
        self.of = 2 - (accuracy >= easy - ROUNDING).long() - (accuracy >= medium - ROUNDING).long()
        self.members = torch.nn.functional.one_hot(self.of, LEVELS).double()
        self.size = self.members.sum(-2)
        self.seen = self.size > 0

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values `[*R, B]` over the responses of each level, 0 where there are none."""
        return (self.members * values.double().unsqueeze(-1)).sum(-2) / self.size.clamp(min=1)

    def at(self, values: Tensor) -> Tensor:
        """Values of the levels `[*R, 3]` for each response, `[*R, B]`."""
        return values.gather(-1, self.of)


def window_entropy(entropy: Tensor, mask: Tensor, window: int) -> Tensor:
    """Mean entropy of each token and the next ones, `window` in all or up to the end, over kept ones, `[*R, B, T]`."""
    length = mask.shape[-1]
    end = (torch.arange(length, device=mask.device) + window).clamp(max=length)
    sums = [torch.nn.functional.pad(x.double().cumsum(-1), (1, 0)) for x in (torch.where(mask, entropy, 0.0), mask)]
    total, size = (x[..., end] - x[..., :-1] for x in sums)
    return total / size.clamp(min=1)


def high(values: Tensor, mask: Tensor, bound: float | None, quantile: float) -> Tensor:
    """How many kept values of each response exceed `bound`, or where it is None that quantile of the run, `[*R, B]`."""
    limit = masked.quantile(values, mask, quantile) if bound is None else bound
    return (mask & (values > limit)).sum(-1).double()


def entropy_reward(excess: Tensor, target: Tensor, level: Tensor, right: Tensor, cap: Tensor) -> Tensor:
    """E_i `[*R, B]` from δ_i = n_i − n*, the target n*, the level and the cap C of each response; see ARES."""
    c, k, soft, wrong = (excess.new_tensor(x)[level] for x in (MARGIN, HUBER, SOFT, WRONG))
    margin = (c * target).clamp(min=1)

    def price(x: Tensor) -> Tensor:
        x = x.clamp(min=0)
        return torch.where(x <= k, x.square() / (2 * k), x - k / 2) / (margin + k)

    too_many = price(torch.where(level == 0, excess, excess.abs()) - margin)
    too_few = price(-excess - margin) / 2
    hard = torch.where(excess >= -margin, ((excess + margin) / soft).sigmoid(), -too_few.clamp(max=1))
    of_right = torch.where(level == 2, hard, -too_many.clamp(max=1))
    return cap * torch.where(right, of_right, wrong * ((excess - margin).clamp(min=0) / soft).sigmoid())
