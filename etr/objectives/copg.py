"""CoPG: contrastive policy gradient, the regression of all pairs of answers onto the optimum of KL-regularised RL.

    R_β(y) = R(y) − β·log(π(y)/π_ref(y)),   L = 1/(k−1)·Σ_{i>j} (R_β(y_i) − R_β(y_j))²   over a group of k

L is 0 exactly where π ∝ π_ref·e^{R/β}, whoever sampled the answers. ∂L/∂log π(y_i) = −2β·A_i with A_i the
leave-one-out advantage of R_β, so on-policy it is −2β times RLOO's gradient.
Paper: Flet-Berliac et al., "Contrastive policy gradient", 2406.19185, read in others' notes. L couples the answers of a
group, which micro-batches tear apart. Here each answer meets the others as they were when they were sampled (ours;
exact at the first update), which divided by −2β is

    J_i = A_i·log π(y_i) − (β/2)·ℓ_i²,   ℓ_i = log(π(y_i)/π_old(y_i)),   ∂J_i/∂log π(y_i) = A_i − β·ℓ_i

a policy gradient with a quadratic tether, which needs no clip. Default β = 0.1: ours, none was found.
Differs from REINFORCE by R_β and the tether; β = 0 is REINFORCE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages
from etr.batch import Batch, Region
from etr.objective import Category, Paper, Reduction
from etr.objectives.reinforce import REINFORCE
from etr.registry import register
from etr.shaping import Shaping


@register("copg")
@dataclass(frozen=True)
class CoPG(Shaping, REINFORCE):
    """J = agg[A·log π − (β/2)·ℓ²/T_i], A the leave-one-out advantage of R − β·log(π_old/π_ref)."""

    aggregation: str = "seq-mean-token-sum"
    beta: float = 0.1

    paper: ClassVar[Paper] = Paper("Contrastive Policy Gradient", "2406.19185", "third-party")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("reinforce", {"beta": 0.0})
    examples = ({"beta": 0.3},)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids", "ref_log_probs"})

    @property
    def exceptions(self) -> Mapping[str, str]:
        broken = {"pessimistic": "the objective A·log π has no ratio to be pessimistic about"}
        if self.beta > 0:
            target = "off-policy the answer is pulled to its share in the optimum, whatever its advantage was"
            broken |= {"no_advantage_no_gradient": target, "gradient_follows_advantage": target}
        return broken

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        assert batch.ref_log_probs is not None
        gap = (batch.old_log_probs - batch.ref_log_probs).sum(-1)
        return advantages.leave_one_out(batch.rewards - self.beta * gap, batch.group_ids)

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        whole = log_ratio.sum(-1, keepdim=True)  # ℓ of the sequence, whose square its tokens share
        length = batch.response_mask.sum(-1, keepdim=True).clamp(min=1)
        return super().surrogate(batch, log_ratio, region) - self.beta / 2 * whole.square() / length
