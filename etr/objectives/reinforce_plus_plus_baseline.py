"""REINFORCE++-baseline: the group's mean as baseline, the spread of the whole batch as scale.

    A_i = (R_i − group mean), then whitened over the batch;   J = token-mean[min(r·A, clip(r, 1−ε, 1+ε)·A)]

Paper: Hu, "REINFORCE++", 2501.03262, its variant for several responses per prompt. `level` says what is whitened:
"token", (A − mean)/(std + 1e-6) over all kept tokens (verl; where lengths differ the mean is not 0, and a group without
signal gets a small common advantage); "response", A/(std + 1e-6) over responses (ms-swift), which keeps A = 0 there.
Defaults: verl's level; ε = 0.2 as PPO's. OUR choice: the population std (verl: the sample's).
Differs from GRPO: prompts share one scale, so no small group spread is blown up. From `reinforce_plus_plus`: a baseline
per prompt, no penalty inside the reward.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages
from etr.batch import Batch
from etr.checks import check_choice
from etr.objective import Category, Paper, Reduction
from etr.objectives.ppo import PPO
from etr.objectives.reinforce_plus_plus import EPS, whitened
from etr.registry import register
from etr.shaping import Shaping


@register("reinforce_plus_plus_baseline")
@dataclass(frozen=True)
class REINFORCEPlusPlusBaseline(Shaping, PPO):
    """PPO's J with A = whitened (R − group mean)."""

    aggregation: str = "token-mean"
    level: str = "token"

    paper: ClassVar[Paper] = Paper("REINFORCE++ (baseline variant)", "2501.03262", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = None
    examples = (*PPO.examples, {"level": "response"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "level", ("token", "response"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids"}

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.batch_whiten(rewards, group_ids, eps=EPS)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        rewards = batch.rewards.to(batch.old_log_probs.dtype)
        if self.level == "response":
            return self.advantage(rewards, batch.group_ids)
        centred = advantages.group_center(rewards, batch.group_ids)
        return whitened(centred.unsqueeze(-1).expand_as(batch.old_log_probs), batch.response_mask)
