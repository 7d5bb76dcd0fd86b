"""MaxRL: ascend the log-likelihood of being right, so that hard prompts count most.

    A_i = (R_i − mean)/mean^λ within the group, 0 where nothing is right            λ = 1

For 0/1 rewards and K right answers among G, (1/G) Σ_i R_i/mean·∇log π = (1/K) Σ_right ∇log π: the mean score of the
right answers, an estimate of ∇ln p. With the group mean as baseline its expectation is exactly

    ∇p·[1 − (1−p)^{G−1}]/p = ∇ Σ_{k<G} −(1−p)^k/k ,   the series of ln p cut behind G − 1 terms

(derived here; `etr.oracles.population.gain`), so more samples per prompt mean a better likelihood and not only less
noise. Paper: Tajwar et al., "Maximum Likelihood Reinforcement Learning", 2602.02710; the series is on its authors'
page, the formula of A was read at second hand: third-party. Our choices: GRPO's loss around it, and the power λ; λ = 0
is Dr. GRPO's advantage, which ascends p itself. GRPO divides by the std √(p(1−p)) instead; DISCO's weight 1/(p + δ) is
nearly the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages
from etr.errors import FieldError
from etr.groups import Groups, unit_rewards
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register


@register("maxrl")
@dataclass(frozen=True)
class MaxRL(GRPO):
    """GRPO's loss with A = (R − mean)/mean^power; rewards in [0, 1]."""

    power: float = 1.0

    paper: ClassVar[Paper] = Paper("Maximum Likelihood Reinforcement Learning", "2602.02710", "third-party")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("dr_grpo", {"power": 0.0})
    examples = ({"power": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.power <= 1:
            raise FieldError(f"MaxRL.power is {self.power:g}; give a number from 0 (ascends p) to 1 (ascends ln p)")

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        mean = Groups(rewards, group_ids).mean(unit_rewards(rewards, "maxrl divides by the success rate"))
        right = mean > 0
        centred = advantages.group_center(rewards, group_ids)
        return torch.where(right, centred / torch.where(right, mean, 1.0) ** self.power, 0.0)
