"""R²VPO: no clip; the variance of the ratio is what an update may spend.

    max E[r·A]  subject to  E[(r − 1)²] ≤ δ        ⇒        J = agg[r·A − λ·(r − 1)²],   c = r·(A − 2λ(r − 1))

Paper: Luo et al., "Ratio-Variance Regularized Policy Optimization for Efficient LLM Fine-tuning", 2601.03320 (later
version 2605.26784). The paper's (abstract): the constraint and that it is solved primal–dual. From third-party code:
the gradient above with a fixed λ = 0.04 (`variance_weight`). The paper's own defaults were not found.
`dual`: λ is a dual variable in the state. The true E[(r − 1)²] is known only after an update, which no objective sees;
so the inner maximum is taken exactly instead, over free ratios: r* = 1 + A/(2λ). Dual ascent on what is left of it,

    λ ← λ·exp(η·clamp(E[(r* − 1)²]/δ − 1, −1, 1)),      fixed point  λ* = ½·√(E[A²]/δ),

is OURS (a product, so that λ > 0), as are δ = 0.2² (`ratio_variance`), η = 0.1 (`dual_rate`). A batch without
advantages leaves λ. Ratios of shared parameters move less than free ones, so the variance that is reached lies below δ.
Off-policy reuse needs no more than old_log_probs of the policy that sampled.
Differs from SPO (2401.16025): one λ for all tokens instead of |A|/(2ε).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, controllers, masked
from etr.batch import Batch, Region
from etr.objective import Objective, Paper, Reduction, State
from etr.registry import register


@register("r2vpo")
@dataclass(frozen=True)
class R2VPO(Objective):
    """J = agg[r·A − λ·(r − 1)²]."""

    variance_weight: float = 0.04
    dual: bool = False
    ratio_variance: float = 0.04
    dual_rate: float = 0.1

    paper: ClassVar[Paper] = Paper("Ratio-Variance Regularized Policy Optimization", "2601.03320", "third-party")
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"variance_weight": 0.0, "dual": False}, {"eps_low": 1.0, "eps_high": 1e9}
    )
    examples = ({"dual": True, "variance_weight": 2.5}, {"variance_weight": 1.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_ranges(self, 0.0, 1e9, "variance_weight", open_low=self.dual)
        checks.check_ranges(self, 0.0, 1e9, "ratio_variance", "dual_rate", open_low=True)

    @property
    def columns(self) -> tuple[str, ...]:
        return ("r2vpo_weight",) if self.dual else ()

    @property
    def exceptions(self) -> Mapping[str, str]:
        if self.variance_weight == 0:
            return {}
        return {
            "no_advantage_no_gradient": "the penalty pulls every token back to the old policy, with or without A",
            "gradient_follows_advantage": "beyond r = 1 + A/(2λ) the penalty pulls back, by design",
        }

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        if not self.dual:
            return {}
        return {"r2vpo_dual": controllers.start(self.variance_weight, run_shape, device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if not self.dual:
            return batch, state
        clean, weight = batch.clean(), state["r2vpo_dual"]
        squares = clean.token_advantages.double().square().expand(clean.response_mask.shape)
        signal = masked.mean(squares, clean.response_mask).squeeze((-2, -1))
        excess = (signal / (4 * weight.square() * self.ratio_variance) - 1).clamp(-1.0, 1.0)
        moved = torch.where(signal > 0, weight * (self.dual_rate * excess).exp(), weight)
        column = controllers.as_column(controllers.per_run(weight), clean.response_mask)
        return batch.with_columns(r2vpo_weight=column), {**state, "r2vpo_dual": moved}

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        ratio = log_ratio.exp()
        dual = controllers.from_column(batch.columns["r2vpo_weight"], ratio) if self.dual else self.variance_weight
        return ratio * batch.token_advantages - dual * (ratio - 1).square()
