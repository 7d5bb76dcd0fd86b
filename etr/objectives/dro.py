"""DRO, the loss of Kimi k1.5: the plain policy gradient with a quadratic spring to the old policy in place of a clip.

Paper: Kimi Team, "Kimi k1.5: Scaling Reinforcement Learning with LLMs", 2501.12599; `dro` in verl, `kimi15` in ROLL.
    J = token-mean[A·log π − (τ/2)·(log π − log π_old)²],    c = A − τ·log r (the spring counted in)
A = R − mean of the group: the paper's; τ = 0.1: ROLL's default (verl has none). Those trainers and this file take the
square for each token, the paper for the whole response. Here the spring is a regularizer, so a rollout correction does
not weigh it (in verl it does). Differs from `reinforce` in the spring and the mean of the whole group.
Not Distributionally Robust Optimization, which has the same short name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages, ratios
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.reinforce import REINFORCE
from etr.registry import register


@register("dro")
@dataclass(frozen=True)
class DRO(REINFORCE):
    """J = token-mean[A·log π − (tau/2)·(log π − log π_old)²]."""

    tau: float = 0.1

    paper: ClassVar[Paper] = Paper("Kimi k1.5", "2501.12599", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", {"tau": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "tau", 0.0, 1e9)

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.group_center(rewards, group_ids)

    def regularizer(self, batch: Batch) -> Tensor | None:
        return None if self.tau == 0 else self.tau / 2 * ratios.token(batch).square()
