"""ESPO: a response in two parts, its uncertain and its certain tokens, each with one ratio and a range of its own.

    e_t: entropy of π_old;  τ: the tokens of a response above the batch's (1 − share) quantile of e, or those below
    s_τ = (Π_{t∈τ} r_t)^{1/|τ|};   ε_τ = (α/ln V)·mean_{t∈τ} e_t
    J = (1/G) Σ_i (1/#τ_i) Σ_τ (1/|τ|) Σ_{t∈τ} S(s_τ, A_i; 1 − ε_τ, 1 + ε_τ)

Paper: Sheng et al., "ESPO: Entropy Importance Sampling Policy Optimization", 2512.00499 (Eq. 5-11). Defaults are the
paper's: α = 0.02 (`scale`), about a fifth of the tokens in the uncertain part (`share`).
OUR choices: two parts, cut at a quantile over the batch; A is GRPO's for every response (the paper's indicator keeps
those that could be verified, and all can here). The paper's token form of s_τ has the gradient of this plain one, as
long as the tokens of a part share A, and they do.
V = `vocab_size`; None, the default, reads it off `full_log_probs`, which toys have. An LLM's trainer has no such table:
set `vocab_size` there, to the number of tokens of the model.
Differs from GSPO: ratio per part instead of per response, a range that grows with entropy, and parts of equal weight.
Not ESPO of diffusion language models (ELBO-based, 2512.03759).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, masked, regions
from etr.batch import Batch, Region
from etr.objective import Paper, State
from etr.objectives.grpo import GRPO
from etr.ratios import LOG_RATIO_LIMIT
from etr.registry import register
from etr.shaping import Shaping


@register("espo")
@dataclass(frozen=True)
class ESPO(Shaping, GRPO):
    """J = mean_i mean_τ S(s_τ, A; 1 − ε_τ, 1 + ε_τ), τ the uncertain and the certain tokens of a response."""

    scale: float = 0.02
    share: float = 0.2
    vocab_size: int | None = None

    paper: ClassVar[Paper] = Paper("ESPO: Entropy Importance Sampling Policy Optimization", "2512.00499", "verified")
    reduces_to = None
    examples = ({"scale": 0.5}, {"share": 0.0}, {"vocab_size": 4})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1.0, "scale", "share")
        if self.vocab_size is not None:
            checks.check_ranges(self, 2, 1e9, "vocab_size")

    @property
    def needs(self) -> frozenset[str]:
        table = frozenset({"full_log_probs"}) if self.vocab_size is None else frozenset()
        return super().needs | {"entropy"} | table

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "espo_uncertain", "espo_width")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        mask, entropy, full = clean.response_mask, clean.entropy, clean.full_log_probs
        assert entropy is not None and (full is not None or self.vocab_size)  # in `needs`
        entropy = entropy.detach()  # of the old policy: the range is not optimised through
        size = self.vocab_size or (0 if full is None else full.shape[-1])
        uncertain = mask & (entropy > masked.quantile(entropy, mask, 1 - self.share))
        width = self.scale / math.log(max(size, 2)) * _mean_of_part(entropy, uncertain, mask)
        return super().prepare(batch.with_columns(espo_uncertain=uncertain, espo_width=width), state)

    def shape(self, batch: Batch) -> Tensor:
        """A token's share of its row: T_i/(#τ·|τ|), whose mean over the row is 1."""
        uncertain, mask = batch.columns["espo_uncertain"], batch.response_mask
        certain = mask & ~uncertain
        parts = uncertain.any(-1, keepdim=True).double() + certain.any(-1, keepdim=True)
        size = torch.where(uncertain, uncertain.sum(-1, keepdim=True), certain.sum(-1, keepdim=True))
        weight = mask.sum(-1, keepdim=True) / (parts * size).clamp(min=1)
        return batch.token_advantages * torch.where(mask, weight, 0.0).to(batch.advantages.dtype)

    def ratio(self, batch: Batch) -> Tensor:
        log_ratio = batch.log_probs - batch.old_log_probs
        mean = _mean_of_part(log_ratio, batch.columns["espo_uncertain"], batch.response_mask)
        return mean.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        width = batch.columns["espo_width"].to(log_ratio.dtype)
        return regions.interval(width, width)


def _mean_of_part(values: Tensor, uncertain: Tensor, mask: Tensor) -> Tensor:
    """Each token's mean over its part of the response, 0 on padding."""
    certain = mask & ~uncertain
    means = [
        torch.where(part, values, 0.0).sum(-1, keepdim=True) / part.sum(-1, keepdim=True).clamp(min=1)
        for part in (uncertain, certain)
    ]
    return torch.where(uncertain, means[0], torch.where(certain, means[1], 0.0))
