"""ARPO: half of a group is sampled whole, the other half branches off where the first became uncertain.

    ΔH_t = H_t − H_0 of a trunk, in nats
    branch before the token t ≥ 1 with the largest ΔH_t  if  clip(½ − weight·ΔH_t, 0, 1) ≤ threshold
    A_t = mean of A_j over the answers j of the group that begin with the same tokens 0..t     (shared)

Paper: "Agentic Reinforced Policy Optimization", 2507.19849, and its code: 16 answers, 8 of them first; after a tool
call a branch is taken if clip(u − 0.2·ΔH, 0, 1) ≤ 0.5, u uniform; what is left is filled with fresh answers.
Default: half, weight 0.2, threshold 0.5, from that code. Counted as reconstructed for what is OURS: ΔH is not divided
by ln V; u is its mean ½, so branching is a rule and not a draw; any token may be followed by a branch, for want of tool
calls, and each trunk has one; H_0 is the entropy of the answer's first token.
The tokens before a branch were sampled by the policy, in its trunk: they stay in the loss of all answers with them.
shared=False is the paper's "soft" advantage: each answer keeps its own, and the sum over shared tokens is the same.
Against `grpo`: the sampler, and A shared. Name: another ARPO (GUI agents) replays successes from a buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.samplers import Attempt, Start
from etr.sampling import Sampling, share_of
from etr.shaping import Shaping


@register("arpo")
@dataclass(frozen=True)
class ARPO(Shaping, Sampling, GRPO):
    """GRPO on trees: branches at uncertain tokens, one advantage for shared tokens."""

    share: float = 0.5
    weight: float = 0.2
    threshold: float = 0.5
    shared: bool = True

    paper: ClassVar[Paper] = Paper("ARPO: agentic reinforced policy optimization", "2507.19849", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"shared": False})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("share", "threshold"):
            check_range(self, name, 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy", "tokens", "group_ids"}

    def start(self, attempt: Attempt) -> Start | None:
        assert attempt.entropy is not None  # in `needs`
        if attempt.round or self.share == 0:
            return None
        member, whole = torch.arange(attempt.tokens.shape[-2]), self.whole(attempt.entropy)
        trunk = (member % whole).expand(attempt.given.shape).unsqueeze(-1).expand(attempt.tokens.shape)
        place = self.place(attempt.entropy.gather(-2, trunk))
        return Start(attempt.tokens.gather(-2, trunk), torch.where(member >= whole, place, 0), trained=True)

    def whole(self, entropy: Tensor) -> Tensor:
        """How many answers of a group are no branches, from their first entropy `[..., G, T]`: int64 `[..., 1]`."""
        size = entropy.shape[-2]
        return torch.full_like(entropy[..., 0, :1], size - share_of(size, self.share), dtype=torch.int64)

    def place(self, entropy: Tensor) -> Tensor:
        """How many tokens of a trunk come before its branch, `[..., T]` -> int64 `[...]`; 0 for none."""
        rise, place = (entropy[..., 1:] - entropy[..., :1]).max(-1)
        score = (0.5 - self.weight * rise).clamp(0.0, 1.0)
        return torch.where(score <= self.threshold, place + 1, 0)

    def shape(self, batch: Batch) -> Tensor:
        advantages = batch.token_advantages.expand(batch.response_mask.shape)
        return mean_of_shared(advantages, batch) if self.shared else batch.advantages


def mean_of_shared(advantages: Tensor, batch: Batch) -> Tensor:
    """Each token's advantage as the mean over the answers of its group that are the same up to it, `[*R, B, T]`."""
    assert batch.tokens is not None and batch.group_ids is not None  # in `needs`
    ids = batch.group_ids.expand(advantages.shape[:-1])
    same = ids.unsqueeze(-1) == ids.unsqueeze(-2)
    found = []
    for t in range(advantages.shape[-1]):
        token, kept = batch.tokens[..., t], batch.response_mask[..., t]
        same = same & (token.unsqueeze(-1) == token.unsqueeze(-2)) & kept.unsqueeze(-2)
        total = torch.where(same, advantages[..., t].unsqueeze(-2), 0.0).sum(-1)
        found.append(total / same.sum(-1).clamp(min=1))
    return torch.stack(found, -1)
