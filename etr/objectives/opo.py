"""OPO: the optimal baseline with the length of a response in place of its squared gradient norm.

    b = Σ_i T_i·R_i / Σ_i T_i,   A_i = R_i − b

Paper: Hao et al., "On-Policy RL with Optimal Reward Baseline" (OPO), 2505.23585, which trains strictly on-policy; there
the clip never acts. If all tokens have the same expected squared gradient norm, the variance-optimal weight of a
response is its number of tokens. PPO's clip and token mean are those of verl's trainer, whose estimator `opo` this is.
With responses of equal length it is Dr. GRPO's advantage R − mean. Not leaving one's own reward out, as in the paper,
makes the gradient's expectation smaller by about (G−1)/G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages
from etr.baselines import centred, weighted_baseline
from etr.batch import Batch
from etr.objective import Paper
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping


@register("opo")
@dataclass(frozen=True)
class OPO(Shaping, PPO):
    """PPO's clip with A = R − Σ T·R/Σ T over the group."""

    paper: ClassVar[Paper] = Paper("On-Policy RL with Optimal Reward Baseline (OPO)", "2505.23585", "verified")
    category = "advantage"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids"})

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_center(rewards, group_ids)  # what it is where all lengths are equal

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        lengths = batch.response_mask.sum(-1).to(batch.rewards.dtype)
        return centred(batch.rewards, weighted_baseline(batch.rewards, lengths, batch.group_ids), batch.group_ids)
