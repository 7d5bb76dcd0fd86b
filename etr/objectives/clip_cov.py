"""Clip-Cov: a few tokens among those that push entropy down most lose their gradient.

    cov_t = (A_t − mean A)·(log π_old − mean log π_old) over all tokens of the batch
    of the tokens with cov_low < cov_t < cov_high, max(1, ⌊share·N⌋) chosen at random have their loss set to 0
    J = token-mean[S(r, A; 1 − ε_low, 1 + ε_high)] with dual clip, 0 on the chosen tokens (they stay in the mean)

Paper: Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", 2505.22617: one
step changes the entropy by minus the covariance of log π and advantage. Defaults: share 2e-4, bounds 1 and 5 (verl),
ε = 1 on both sides and dual clip 10 (the authors' 7B script, so that PPO's clip hardly acts).
OUR choices: the covariance is taken once, at the start of the update, where no ratio is clipped (the released code
takes it at every update and leaves out tokens that PPO clips); "at random" is a hash of the response's old log-probs
and the place in it, so that the choice depends on nothing but data. Tokens that it cannot tell apart, as the same
answers of a bandit, share what is to be taken from them: of m such tokens k lose their gradient in that each keeps the
share 1 − k/m of it, the mean over all choices.
Differs from GRPO: the chosen tokens, and token-mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked
from etr.batch import Batch
from etr.hashing import PRIME, mixed
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("clip_cov")
@dataclass(frozen=True)
class ClipCov(Shaping, GRPO):
    """GRPO without the gradient of a few tokens of high covariance."""

    aggregation: str = "token-mean"
    eps_low: float = 1.0
    eps_high: float = 1.0
    dual_clip: float | None = 10.0
    share: float = 2e-4
    cov_low: float = 1.0
    cov_high: float = 5.0

    paper: ClassVar[Paper] = Paper("The Entropy Mechanism of RL (Clip-Cov)", "2505.22617", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"cov_low": 1e9, "cov_high": 1e9})
    examples = ({"share": 0.1, "cov_low": 0.0, "dual_clip": None},)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "share")

    def shape(self, batch: Batch) -> Tensor:
        mask, cov = batch.response_mask, covariance(batch)
        likely = mask & (cov > self.cov_low) & (cov < self.cov_high)
        chosen = masked.top_shares(lottery(batch), likely, at_least_one(mask, self.share))
        return batch.token_advantages * (1 - chosen).to(batch.advantages.dtype)


def covariance(batch: Batch) -> Tensor:
    """(A_t − mean A)·(log π_old − mean log π_old), means over the tokens of a run; `[*R, B, T]`."""
    mask = batch.response_mask
    columns = (batch.token_advantages.expand(mask.shape), batch.old_log_probs)
    advantage, log_prob = (x.double() - masked.mean(x.double(), mask) for x in columns)
    return advantage * log_prob


def at_least_one(mask: Tensor, share: float) -> Tensor:
    """max(1, ⌊share·N⌋) for N kept tokens, `[*R, 1, 1]`."""
    return (share * mask.sum((-2, -1), keepdim=True)).floor().long().clamp(min=1)


def lottery(batch: Batch) -> Tensor:
    """A number in [0, 1) for each token, from its response's old log-probs and its place alone."""
    bits = batch.old_log_probs.float().contiguous().view(torch.int32).long()
    place = torch.arange(bits.shape[-1], device=bits.device)
    own = torch.where(batch.response_mask, mixed(bits + 7919 * place), 0)
    return mixed(own + own.sum(-1, keepdim=True)).double() / PRIME
