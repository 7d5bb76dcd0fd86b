"""AEPO's rollout (agents): the group's budget is split by entropy, and a run of uncertain tokens branches ever less.

    m = G·σ(β(H_root − mean H_later))  answers are sampled whole, the other G − m branch off
    P_t = (α + γ·ΔH_t)·(1 − min(1, γ·l_t)),  ΔH_t = H_t − H_0,  l_t = uncertain tokens (ΔH > 0) in a row before t
    branch before the token t ≥ 1 with the largest P_t  if  P_t > τ;  A shared as in `arpo`

Paper: "Agentic entropy-balanced policy optimization", 2510.14545, from a note on it: budget, penalty and test are the
paper's; β, α, γ, τ are not known to us, so their values are OURS, and so is one branch per answer, and that every token
may be followed by one (theirs follow tool calls). Its advantages and its clip are objectives of their own.
Against `arpo`: how many branches, and where. Name: another AEPO is about arbitrary entropy (`adaptive_temperature`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.objective import Paper, Reduction
from etr.objectives.arpo import ARPO
from etr.registry import register


@register("aepo_rollout")
@dataclass(frozen=True)
class AEPORollout(ARPO):
    """ARPO with the budget and the places of branches after AEPO."""

    budget: float = 1.0
    alpha: float = 0.5
    gamma: float = 0.2
    threshold: float = 0.4

    paper: ClassVar[Paper] = Paper("Agentic entropy-balanced PO (its rollout)", "2510.14545", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"shared": False})

    def whole(self, entropy: Tensor) -> Tensor:
        size = entropy.shape[-2]
        root, later = entropy[..., 0].mean(-1, keepdim=True), entropy[..., 1:].mean((-2, -1)).unsqueeze(-1)
        return (size * torch.sigmoid(self.budget * (root - later))).round().long().clamp(1, size)

    def place(self, entropy: Tensor) -> Tensor:
        rise = entropy - entropy[..., :1]
        row, rows = torch.zeros_like(rise[..., 0]), []
        for t in range(1, rise.shape[-1]):
            rows.append(row)
            row = torch.where(rise[..., t] > 0, row + 1, 0.0)
        chance = (self.alpha + self.gamma * rise[..., 1:]) * (1 - (self.gamma * torch.stack(rows, -1)).clamp(max=1.0))
        best, place = chance.max(-1)
        return torch.where(best > self.threshold, place + 1, 0)
