"""EMPG: steps of high entropy count less, and steps that lead to a confident one get a bonus.

    h_k = mean entropy of the tokens of step k,   h~ = (h − min h)/(max h − min h) over the steps of the batch
    g_k = exp(−κ·h~_k) / mean exp(−κ·h~),   f_k = exp(−κ'·h~_k)
    A_{i,k} = A_i·g_{i,k} + ζ·f_{i,k+1}   (no bonus on the last step),  then minus its mean over the steps of the batch

Paper: "Harnessing Uncertainty: Entropy-Modulated Policy Gradients", 2509.09265. A softmax's squared score norm is
1 − Σ π² in expectation, so uncertain steps have large gradients; g undoes that. THIRD-PARTY: read in another group's
description and code, whence κ = κ' = 1 and ζ = 0.05. A step is a turn; an answer without turns is one step, and then
there is no bonus. Ours: each step counts once in the means; g and the bonus modify whatever advantage GRPO has;
`center` = False leaves the last subtraction out. Centring and bonus also move groups without signal, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked, turns
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("empg")
@dataclass(frozen=True)
class EMPG(Shaping, GRPO):
    """GRPO with A_k·exp(−κ·h~_k)/mean + ζ·exp(−κ'·h~_{k+1}), centred; h~: entropy of a step, scaled to [0, 1]."""

    kappa: float = 1.0
    kappa_next: float = 1.0
    zeta: float = 0.05
    center: bool = True

    paper: ClassVar[Paper] = Paper("Entropy-Modulated Policy Gradients (EMPG)", "2509.09265", "third-party")
    category = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"kappa": 0.0, "zeta": 0.0, "center": False})
    examples = ({"zeta": 0.5, "center": False},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "kappa", 0.0, 10.0)
        check_range(self, "kappa_next", 0.0, 10.0)
        check_range(self, "zeta", 0.0, 10.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy", "turns"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None and batch.turns is not None  # in `needs`
        mask = batch.response_mask
        begins = turns.starts(batch.turns, mask)
        mean = turn_means(batch.entropy, begins, mask)
        low, high = masked.least(mean, begins), masked.largest(mean, begins)
        level = torch.where(high > low, (mean - low) / torch.where(high > low, high - low, 1.0), 0.0)
        calm = (-self.kappa * level).exp()
        bonus = turns.at_next_start((-self.kappa_next * level).exp(), begins)
        shaped = batch.token_advantages * (calm / masked.mean(calm, begins)) + self.zeta * bonus
        if self.center:
            shaped = shaped - masked.mean(shaped, begins)
        return torch.where(mask, shaped, 0.0)


def turn_means(values: Tensor, begins: Tensor, mask: Tensor) -> Tensor:
    """Every token gets the mean of `values` over the kept tokens of its turn."""
    number = turns.number(begins)
    empty = torch.zeros((*values.shape[:-1], values.shape[-1] + 1), dtype=values.dtype, device=values.device)
    kept = mask.to(values.dtype)
    total, count = (empty.scatter_add(-1, number, x) for x in (values * kept, kept))
    return (total / count.clamp(min=1)).gather(-1, number)
