"""Floor 1: bundles of prompts, and in each bundle papers: the j-th response to every one of its prompts."""

from __future__ import annotations

import torch
from torch import Tensor

from etr import alike, masked
from etr.groups import Groups

CREDITS = ("sum-mean", "std", "uniform")
ROUNDING = 1e-6  # of rewards in single precision, summed in any order


class Papers:
    """The papers of a batch whose groups are of equal size.

    Prompts go into bundles in the order of their ids, as evenly as can be, about `size` to a bundle; the number of a
    response in its group is its place in the batch, which is as good as a draw, because responses are.
    scores: Σ R of each response's paper in double precision, `[*R, B]`; mates: True where two responses are in one
    paper, `[*R, B, B]`; counted: at (i, j), does response j stand for its paper, and is that in the bundle of i?
    """

    def __init__(self, rewards: Tensor, group_ids: Tensor, size: int) -> None:
        ids = group_ids.expand(rewards.shape)
        group = alike.same(ids)
        responses = torch.arange(rewards.shape[-1], device=rewards.device)
        number = (group & (responses < responses.unsqueeze(-1))).sum(-1)
        share = 1 / alike.count(group, rewards).double()
        prompt = alike.total(ids.unsqueeze(-1) > ids.unsqueeze(-2), share).round().long()
        prompts = share.sum(-1, keepdim=True).round().long()
        bundle = prompt * (prompts // size).clamp(min=1) // prompts
        self.rewards = rewards.double()
        self.groups = Groups(self.rewards, ids)
        self.mates = alike.same(bundle, number)
        self.scores = self.sum(self.rewards)
        first = ~(self.mates & (prompt.unsqueeze(-1) > prompt.unsqueeze(-2))).any(-1)
        self.first = first  # one response for each paper
        self.counted = alike.same(bundle) & first.unsqueeze(-2)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the members of each response's paper."""
        return alike.total(self.mates, values)

    def mean_share(self, hit: Tensor) -> Tensor:
        """Share of the batch's papers for which `hit` `[*R, B]`, `[*R, 1]`."""
        return (hit & self.first).sum(-1, keepdim=True).double() / self.first.sum(-1, keepdim=True)

    def std(self) -> Tensor:
        """Sample standard deviation of the scores of a response's bundle; 0 where they are equal but for rounding."""
        count = self.counted.sum(-1).clamp(min=2).to(self.scores.dtype)
        mean = alike.total(self.counted, self.scores) / self.counted.sum(-1)
        far = torch.where(self.counted, self.scores.unsqueeze(-2) - mean.unsqueeze(-1), 0.0)
        spread = (far.square().sum(-1) / (count - 1)).sqrt()
        return torch.where(spread > ROUNDING * (1 + mean.abs()), spread, 0.0)

    def quantile(self, level: float) -> Tensor:
        """The quantile of the scores of a response's bundle, interpolated linearly."""
        ordered = torch.where(self.counted, self.scores.unsqueeze(-2), torch.inf).sort(-1).values
        place = level * (self.counted.sum(-1, keepdim=True) - 1).double()
        low, high = (ordered.gather(-1, index) for index in (place.floor().long(), place.ceil().long()))
        return torch.where(low == high, low, low + (high - low) * (place - place.floor()).to(low.dtype)).squeeze(-1)

    def quantile_of_all(self, level: float) -> Tensor:
        """The quantile of the scores of all papers of the batch, `[*R, 1]`."""
        return masked.quantile(self.scores.unsqueeze(-1), self.first.unsqueeze(-1), level).squeeze(-1)

    def credit(self, value: Tensor, kind: str) -> Tensor:
        """Shares of the value `[*R, B]` of their paper for its members, by one of `CREDITS`."""
        if kind == "uniform":
            return value
        far = self.rewards - self.groups.mean(self.rewards)
        if kind == "std":
            spread = (self.groups.sum(far.square()) / (self.groups.size - 1)).sqrt()
            return value / torch.where(spread > 1e-3, spread, 1.0)
        total, count = self.sum(far), self.sum(torch.ones_like(far))
        told = total.abs() > 1e-6
        return value * torch.where(told, far / torch.where(told, total, 1.0), 1 / count)
