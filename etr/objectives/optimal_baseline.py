"""Optimal baseline: the scalar baseline of a group with which the policy gradient has the least variance.

    w_i = Σ_t (1 − 2·p_{i,t} + Σ_v π(v)²) = ‖∇ log π(o_i)‖² for a table of logits
    b*  = Σ_i w_i·R_i / Σ_i w_i,   A_i = R_i − b*       (leave_one_out: the sums run over the others)

Paper: OBLR-PO, 2511.23310; b* = E[‖g‖²·R]/E[‖g‖²] with g = ∇ log π(o) is the classic variance-optimal baseline. The
estimate is RECONSTRUCTED: w is exact where every prefix has logits of its own, and elsewhere the norm with respect to
the logits only. Ours: leaving one's own reward out, which keeps the gradient unbiased, as b* then does not depend on
the response; PPO's clip, and the mean over tokens, because w belongs to the gradient of a whole response. The paper's
learning rate from the gradient's signal-to-noise ratio is no part of a loss. It differs from `opo` in w, which there is
the length, and from `optimal_token_baseline` in having one baseline for all tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import advantages
from etr.baselines import centred, squared_scores, weighted_baseline
from etr.batch import Batch
from etr.objective import Paper
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping


@register("optimal_baseline")
@dataclass(frozen=True)
class OptimalBaseline(Shaping, PPO):
    """PPO's clip with A = R − Σ w·R/Σ w over the group, w = Σ_t (1 − 2p + Σ π²)."""

    leave_one_out: bool = True

    paper: ClassVar[Paper] = Paper("OBLR-PO (optimal baseline)", "2511.23310", "reconstructed")
    category = "advantage"
    examples = ({"leave_one_out": False},)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids", "full_log_probs"})

    def advantage(self, rewards: Tensor, group_ids: Tensor) -> Tensor:
        return advantages.leave_one_out(rewards, group_ids)  # what it is where all weights are equal

    def shape(self, batch: Batch) -> Tensor:
        rewards, ids, full = batch.rewards, batch.group_ids, batch.full_log_probs
        assert rewards is not None and ids is not None and full is not None
        weights = squared_scores(batch.old_log_probs, full, batch.response_mask).sum(-1).to(rewards.dtype)
        return centred(rewards, weighted_baseline(rewards, weights, ids, self.leave_one_out), ids)
