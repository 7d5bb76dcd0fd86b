"""KL-Cov: no clip, but the tokens that push entropy down most are tied to the old policy.

    cov_t = (A_t − mean A)·(log π_old − mean log π_old) over all tokens of the batch
    J = token-mean[r·A],  minus β·|log π − log π_old| on the max(1, ⌊share·N⌋) tokens of the largest cov_t

Paper: Cui et al., "The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models", 2505.22617.
Defaults: share 2e-4, β = 1 (verl; the authors' own code writes the share as 0.2 per cent).
OUR choices: the covariance is taken once, at the start of the update (the released code: at every update), and only
tokens with cov_t > 0 are tied, as the largest of any large batch are. At r = 1 the penalty has no gradient (the
derivative of |x| at 0 is taken as 0). Equal tokens, as the same answers of a bandit, share the places left among the
largest: of m such tokens k are tied in that each is tied by β·k/m.
Differs from Clip-Cov: the tokens keep their gradient and pay for moving; from GRPO: no clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import checks, masked, ratios
from etr.batch import Batch
from etr.objective import Category, Objective, Paper, Reduction, State
from etr.objectives.clip_cov import at_least_one, covariance
from etr.registry import register


@register("kl_cov")
@dataclass(frozen=True)
class KLCov(Objective):
    """J = token-mean[r·A] − β·|log r| on the tokens of the largest covariance."""

    aggregation: str = "token-mean"
    beta: float = 1.0
    share: float = 2e-4

    paper: ClassVar[Paper] = Paper("The Entropy Mechanism of RL (KL-Cov)", "2505.22617", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"beta": 0.0}, {"eps_low": 1.0, "eps_high": 1e9})
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({"share": 0.1},)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "share")

    @property
    def columns(self) -> tuple[str, ...]:
        return ("kl_cov_tied",)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        mask, cov = clean.response_mask, covariance(clean)
        tied = masked.top_shares(cov, mask & (cov > 0), at_least_one(mask, self.share))
        return batch.with_columns(kl_cov_tied=tied), state

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.beta == 0:
            return None
        moved = ratios.token(batch).abs()
        return self.beta * batch.columns["kl_cov_tied"].to(moved.dtype) * moved
