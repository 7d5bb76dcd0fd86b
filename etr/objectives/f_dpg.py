"""f-DPG: moves the policy towards a target distribution, in a divergence of choice.

    p(y) = π_ref(y)·e^{R(y)/β}/Z,   t = π(y)/p(y),   ∇D_f(π ‖ p) = E_{y∼q}[(π/q)·f'(t)·∇log π(y)]
    A_i = −f'(t_i) less the mean of the other answers,   log t = log π − log π_ref − R/β + log Z,   Z = mean of P/q

| divergence | D | f'(t) |
|---|---|---|
| kl | KL(p ‖ π), as DPG | −1/t |
| reverse_kl | KL(π ‖ p), as RL with a KL penalty | log t + 1 |
| js | twice Jensen-Shannon | log(2t/(1+t)) |
| tv | total variation | sign(log t)/2 |
| chi2, reverse_chi2 | χ²(p ‖ π), χ²(π ‖ p) | 1 − t⁻², 2(t − 1) |

Paper: Go et al., "Aligning language models with preferences through f-divergence minimization", 2302.08215. Ours: the
baseline is leave-one-out instead of a moving average; t is that at the rollout, and later updates of the batch pass
through PPO's clip; Z is estimated in each group, or over the `batch`; log t is kept within ±`limit` (10), which a
divergence of large t needs; β = 0.1 and reverse_kl, none was found. Z and A share samples, a bias that falls with G.
With verdicts that are random, e^{R/β} is averaged over them, so kl covers right answers in proportion to their chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from etr import advantages
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.groups import Groups
from etr.objective import Category, Paper
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.shaping import Shaping

SLOPES: dict[str, Callable[[Tensor], Tensor]] = {  # f' as a function of log t
    "kl": lambda x: -(-x).exp(),
    "reverse_kl": lambda x: x + 1,
    "js": lambda x: math.log(2) + x - F.softplus(x),
    "tv": lambda x: x.sign() / 2,
    "chi2": lambda x: 1 - (-2 * x).exp(),
    "reverse_chi2": lambda x: 2 * x.expm1(),
}
COVERING = ("kl", "tv", "chi2")  # settle at a share of every answer that is sometimes right, or below it


@register("f_dpg")
@dataclass(frozen=True)
class FDPG(Shaping, PPO):
    """PPO-clip with A = −f'(π/p) less the others' mean, p ∝ π_ref·e^{R/beta}, Z by "group" or "batch"."""

    aggregation: str = "seq-mean-token-sum"
    divergence: str = "reverse_kl"
    beta: float = 0.1
    partition: str = "group"
    limit: float = 10.0

    paper: ClassVar[Paper] = Paper(
        "Aligning Language Models through f-divergence Minimization", "2302.08215", "verified"
    )
    category: ClassVar[Category] = "advantage"
    examples = (*({"divergence": name} for name in SLOPES if name != "reverse_kl"), {"partition": "batch"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "divergence", SLOPES)
        check_choice(self, "partition", ("group", "batch"))
        check_range(self, "beta", 0.0, math.inf, open_low=True)
        check_range(self, "limit", 0.0, math.inf, open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"rewards", "group_ids", "ref_log_probs"})

    @property
    def exceptions(self) -> Mapping[str, str]:
        broken = dict(super().exceptions)
        if self.divergence in COVERING:
            broken["learns_a_bandit"] = (
                "with random verdicts the target gives every arm its share of the right ones, to the best 0.56"
            )
        return broken

    def log_density(self, batch: Batch) -> Tensor:
        """log t of every answer of a clean whole batch, float64 `[*R, B]`."""
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        assert batch.ref_log_probs is not None
        away = (batch.old_log_probs.double() - batch.ref_log_probs.double()).sum(-1)
        x = batch.rewards.double() / self.beta - away  # log P/q
        groups = Groups(x, batch.group_ids if self.partition == "group" else torch.zeros_like(batch.group_ids))
        middle = groups.mean(x)  # e^mean is at most the mean of e, so nothing vanishes; 600: e^709 overflows
        log_z = middle + groups.mean((x - middle).clamp(max=600).exp()).log()
        return (log_z - x).clamp(-self.limit, self.limit)

    def shape(self, batch: Batch) -> Tensor:
        assert batch.group_ids is not None  # in `needs`
        reward = -SLOPES[self.divergence](self.log_density(batch))
        return advantages.leave_one_out(reward, batch.group_ids).to(batch.old_log_probs.dtype)
