"""SPO, Simple Policy Optimization: a parabola instead of the clip, so that a token that went too far is pulled back.

    J = agg[r·A − |A|·(r − 1)²/(2ε)]
    c = r·(A − |A|·(r − 1)/ε): 0 at r = 1 + ε·sign(A), and against A beyond it

Paper: Xie et al., "Simple Policy Optimization", 2401.16025. Default: the authors' ε = 0.2; z-scores and the mean over
responses are GRPO's (OUR choice: the paper's own setting has a critic).
Differs from PPO: beyond its bound PPO only stops, SPO turns back. It is a quadratic penalty on the ratio, with a
stiffness |A|/(2ε) that grows with the advantage, so that the radius is the same for all.
Not Segment Policy Optimization and not Single-stream Policy Optimization, also "SPO", which estimate advantages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import regions
from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Objective, Paper, Reduction
from etr.registry import register


@register("spo_simple")
@dataclass(frozen=True)
class SPOSimple(Objective):
    """J = agg[r·A − |A|·(r − 1)²/(2·eps)]."""

    eps: float = 0.2

    paper: ClassVar[Paper] = Paper("Simple Policy Optimization", "2401.16025", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("trpo", {"eps": 1e30}, {"beta": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "eps", 0.0, 1e30, open_low=True)

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {"gradient_follows_advantage": "beyond 1 + ε·sign(A) the parabola pulls the ratio back, by design"}

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        eps = regions.number(self.eps, log_ratio)
        return Region((1 - eps).clamp(min=0.0), 1 + eps)  # where the maxima are: nothing stops there

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        ratio, advantages = log_ratio.exp(), batch.token_advantages
        return ratio * advantages - advantages.abs() * (ratio - 1).square() / (2 * self.eps)
