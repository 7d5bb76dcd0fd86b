"""GDPO: normalise every part of the reward in its group before adding them up, then the sum over the batch.

    A^k_i = (R^k_i − mean_G R^k)/(std_G R^k + ε),   S_i = Σ_k w_k·A^k_i,   A_i = (S_i − mean S)/(std S + ε)

Paper: "GDPO: Group reward-Decoupled Normalization Policy Optimization", 2601.05242, whose repository has ε = 1e-4 and
sample standard deviations. GRPO normalises the sum Σ_k w_k·R^k, in which (0, 1) and (1, 0) are the same and a part of
large spread drowns the others. With a single part the advantage stays GRPO's, as in the paper's scripts.
`whiten` says over what the last line runs: "responses" as in the authors' code, or "tokens" as in verl's `gdpo`, where
long responses count more often (and ε is 1e-8 inside the root; use eps = 1e-6 with it).
weights: one number for each part, with commas ("1, 0.5"); None for equal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import advantages, masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.errors import FieldError, InputError
from etr.objective import Paper
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping

WHITEN = ("responses", "tokens")


@register("gdpo")
@dataclass(frozen=True)
class GDPO(Shaping, GRPO):
    """GRPO with A = whiten(Σ_k w_k·zscore_group(R^k))."""

    weights: str | None = None
    whiten: str = "responses"
    eps: float = 1e-4

    paper: ClassVar[Paper] = Paper("GDPO: Group reward-Decoupled Normalization", "2601.05242", "verified")
    category = "advantage"
    reduces_to = None  # with one part it is GRPO, but that is a matter of the data
    examples = ({"weights": "1, 0.5"}, {"whiten": "tokens", "eps": 1e-6})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "whiten", WHITEN)
        check_range(self, "eps", 0.0, 1.0)
        self.factors(0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"components", "group_ids"}

    def factors(self, parts: int) -> list[float]:
        """w_k of each part."""
        if self.weights is None:
            return [1.0] * parts
        try:
            found = [float(word) for word in self.weights.split(",")]
        except ValueError:
            raise FieldError(f'GDPO.weights is {self.weights!r}; give numbers with commas, such as "1, 0.5"') from None
        if parts > 1 and len(found) != parts:
            raise InputError(f"GDPO.weights has {len(found)} numbers, but the reward has {parts} parts")
        return found

    def shape(self, batch: Batch) -> Tensor:
        assert batch.components is not None and batch.group_ids is not None  # in `needs`
        mask, parts = batch.response_mask, batch.components.unbind(-1)
        if len(parts) == 1:
            return batch.advantages
        scores = [advantages.group_zscore(part, batch.group_ids, ddof=1, eps=self.eps) for part in parts]
        total = torch.stack([w * score for w, score in zip(self.factors(len(parts)), scores, strict=True)]).sum(0)
        tokens = self.whiten == "tokens"
        every = total.unsqueeze(-1).expand_as(mask) if tokens else total.unsqueeze(-1)
        kept = mask if tokens else mask.any(-1, keepdim=True)
        centred = every - masked.mean(every, kept)
        spread = masked.std(every, kept, ddof=1)
        scale = (spread.square() + 1e-8).sqrt() if tokens else spread + self.eps
        shaped = torch.where(kept & (spread > 0), centred / torch.where(scale > 0, scale, 1.0), 0.0)
        return shaped if tokens else shaped.squeeze(-1)
