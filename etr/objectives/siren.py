"""SIREN: keeps the entropy of the likely tokens, at the peaks of each answer, where it was at the start.

    H^p_t: entropy of the renormalised nucleus, the fewest tokens with total probability ≥ p
    E = mean over responses of the mean of H^p over peaks, the tokens with H^p_t ≥ its q-quantile in the response
    L = L_PG + c·(E − E₀)²,   E₀ = E at step 0

Paper: Jiang et al., "Rethinking entropy regularization in large reasoning models", 2509.25133. A square of a batch mean
is not a sum over micro-batches, so it enters by its derivative: 2c·(E_old − E₀)·E, with E_old of the rollout batch
(ours; exact at the first update). Defaults: the authors' script: p = 0.8, q = 0.8, c = 0.005, clip up to 1.28,
advantages and mean of Dr. GRPO. Ours: ≥ and not > in the quantile, so that answers of one token have a peak; their
code's nucleus leaves out the token that reaches p, and is searched in the 10 000 likeliest. A long `length` shrinks the
policy gradient, not the penalty. (No relation to networks of sines.)
Differs from dr_grpo by the penalty and the upper bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import controllers, masked
from etr.batch import Batch
from etr.checks import check_range
from etr.distributions import row_quantile
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.dr_grpo import DrGRPO
from etr.registry import register


@register("siren")
@dataclass(frozen=True)
class SIREN(DrGRPO):
    """dr_grpo + coefficient·(E − E₀)², by its derivative; E: top-p entropy at the peaks, nats per token."""

    eps_high: float = 0.28
    coefficient: float = 0.005
    top_p: float = 0.8
    quantile: float = 0.8

    paper: ClassVar[Paper] = Paper(
        "Rethinking Entropy Regularization in Large Reasoning Models", "2509.25133", "verified"
    )
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("dr_grpo", {"coefficient": 0.0})
    examples = ({"aggregation": "seq-mean-token-mean"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "coefficient", 0.0, float("inf"))
        check_range(self, "top_p", 0.0, 1.0, open_low=True)
        check_range(self, "quantile", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"full_log_probs"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("entropy_weight",)

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        zero = controllers.start(0.0, run_shape, device)
        return {"anchor": zero, "started": zero}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        entropy, mask = self.nucleus_entropy(clean).double(), clean.response_mask
        peaks = mask & (entropy >= row_quantile(entropy, mask, self.quantile))
        # The weight of a token in E, times what the aggregation will divide it by.
        share = peaks / peaks.sum(-1, keepdim=True).clamp(min=1) / mask.any(-1).sum(-1)[..., None, None].clamp(min=1)
        now = (share * entropy).sum(masked.BATCH, keepdim=True)
        anchor, started = controllers.per_run(state["anchor"]), controllers.per_run(state["started"])
        anchor = torch.where(started > 0, anchor, now)
        weight = 2 * self.coefficient * (now - anchor) * share * self.divisor(mask)
        following = {"anchor": controllers.carried(anchor), "started": torch.ones_like(state["started"])}
        return batch.with_columns(entropy_weight=weight), following

    def divisor(self, mask: Tensor) -> Tensor:
        """What the aggregation divides a token's value by, `[*R, 1, 1]` or `[*R, B, 1]`."""
        if self.aggregation == "local-token-mean":
            return mask.sum(masked.BATCH, keepdim=True)
        whole = self.denominator(mask)[..., None, None]
        return whole * mask.sum(-1, keepdim=True) if self.aggregation == "seq-mean-token-mean" else whole

    def nucleus_entropy(self, batch: Batch) -> Tensor:
        """H^p of a clean batch, `[*R, B, T]`, with gradient; which tokens are in the nucleus has none."""
        assert batch.full_log_probs is not None  # in `needs`
        ordered = batch.full_log_probs.sort(-1, descending=True).values
        before = ordered.exp().cumsum(-1) - ordered.exp()
        inside = (before < self.top_p) | (torch.arange(ordered.shape[-1], device=ordered.device) == 0)
        log_q = torch.where(inside, ordered, -torch.inf).log_softmax(-1)
        return -(log_q.exp() * torch.where(inside, log_q, 0.0)).sum(-1)

    def regularizer(self, batch: Batch) -> Tensor | None:
        entropy = self.nucleus_entropy(batch)
        return controllers.added(
            super().regularizer(batch), batch.columns["entropy_weight"].to(entropy.dtype) * entropy
        )
