"""RLOO: the baseline of a response is the mean reward of the others to its prompt; a KL penalty inside the reward.

    R'_i = R_i − β·Σ_t (log π_old(y_t) − log π_ref(y_t))
    A_i  = R'_i − mean_{j≠i} R'_j = G/(G−1)·(R'_i − mean R')
    J    = token-mean[min(r·A, clip(r, 1−ε, 1+ε)·A)]

Paper: Ahmadian et al., "Back to Basics: Revisiting REINFORCE Style Optimization", 2402.14740. The baseline does not
depend on the response, so the first update's gradient is unbiased. The penalty is the estimator k1 summed over the
response. The paper's loss is REINFORCE (`reinforce` in this library). verl's is PPO's clip of every token's ratio, as
here; TRL's RLOOTrainer clips the ratio of the whole response, Π_t r_t. They differ from the second update on a batch
on. β = 0 leaves the reward alone (ours; verl's default too).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages, regularizers
from etr.batch import Batch
from etr.objective import Paper, Reduction, State
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping


@register("rloo")
@dataclass(frozen=True)
class RLOO(Shaping, PPO):
    """PPO's clip with A = R' − mean of the others' R', R' = R − beta·Σ_t k1."""

    beta: float = 0.0

    paper: ClassVar[Paper] = Paper("Back to Basics: REINFORCE Style Optimization (RLOO)", "2402.14740", "verified")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("ppo", {"beta": 0.0})
    examples = ({"beta": 0.05}, {"dual_clip": 3.0})

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids", "ref_log_probs"}) if self.beta > 0 else frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        return super().columns if self.beta > 0 else ()

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.leave_one_out(rewards, group_ids)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        return super().prepare(batch, state) if self.beta > 0 else (batch, state)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None and batch.ref_log_probs is not None
        penalty = regularizers.kl(batch.old_log_probs, batch.ref_log_probs, "k1").sum(-1)  # 0 on padding
        return self.advantage(batch.rewards - self.beta * penalty, batch.group_ids)
