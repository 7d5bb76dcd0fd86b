"""MDPO: a mirror-descent step, several gradient steps on the ratio objective minus a divergence from the old policy.

    J = agg[r·A − (1/t_k)·D(π(·|s) ‖ π_old(·|s))]
    kind "kl":       D = Σ_a π·(log π − log π_old)
    kind "tsallis":  D = (1/(q−1))·Σ_a [π^q − q·π_old^{q−1}·π + (q−1)·π_old^q]    (q → 1: "kl"; q = 2: Σ_a (π − π_old)²)

Paper: Tomar et al., "Mirror Descent Policy Optimization", 2005.09814. With exact A the maximum is π ∝ π_old·exp(t_k·A).
Default 1/t_k = 0.1 (`kl_weight`) is the authors' code, which takes 5 gradient steps on a batch (the optimiser's
`updates` here). `anneal_steps` = K > 0 lets the step size fall as the paper's schedule does, t_k = (1 − k/K)/kl_weight,
at rollout batch k, OURS at least 1/K of the first; 0, the default, keeps it. The Tsallis divergence is OURS: the
Bregman divergence of negative Tsallis entropy, of which only the name was found; q = 2 (`tsallis_q`) is ours.
OURS too: z-scores of the group as A (the paper's is a critic's), GRPO's mean over responses, the divergence taken in
the state of every sampled token, and probabilities below e⁻¹⁰⁰ count as e⁻¹⁰⁰. There is no ε: nothing is clipped.
Differs from TRPO: KL(π ‖ π_old), not KL(π_old ‖ π), and a penalty. Not mDPO, preferences for multimodal models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, controllers, distributions
from etr.batch import Batch
from etr.objective import Objective, Paper, Reduction, State
from etr.registry import register


@register("mdpo")
@dataclass(frozen=True)
class MDPO(Objective):
    """J = agg[r·A − (1/t_k)·D(π ‖ π_old)], D over the whole vocabulary."""

    kind: str = "kl"
    kl_weight: float = 0.1
    tsallis_q: float = 2.0
    anneal_steps: int = 0

    paper: ClassVar[Paper] = Paper("Mirror Descent Policy Optimization", "2005.09814", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"kl_weight": 0.0}, {"eps_low": 1.0, "eps_high": 1e9})
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({"kind": "tsallis"}, {"anneal_steps": 100})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice(self, "kind", ("kl", "tsallis"))
        checks.check_ranges(self, 0.0, 1e9, "kl_weight", "anneal_steps")
        checks.check_ranges(self, 1.0 if self.tsallis_q >= 1 else 0.0, 10.0, "tsallis_q", open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"full_log_probs"})

    @property
    def columns(self) -> tuple[str, ...]:
        return ("mdpo_old", "mdpo_weight")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        return {"mdpo_step": controllers.start(0.0, run_shape, device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        step, total = controllers.per_run(state["mdpo_step"]), max(self.anneal_steps, 1)
        left = (1 - step / total).clamp(min=1 / total) if self.anneal_steps else torch.ones_like(step)
        weight = controllers.as_column(self.kl_weight / left, batch.response_mask)
        batch = batch.with_columns(mdpo_old=distributions.table(batch), mdpo_weight=weight)
        return batch, {**state, "mdpo_step": state["mdpo_step"] + 1}

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.kl_weight == 0:
            return None
        new, old = distributions.new_and_old(batch, "mdpo_old")
        return controllers.from_column(batch.columns["mdpo_weight"], new) * self.divergence(new, old)

    def divergence(self, new: Tensor, old: Tensor) -> Tensor:
        """D(π ‖ π_old) from two tables of log-probs `[*, V]`."""
        if self.kind == "kl":
            return (new.exp() * (new - old)).sum(-1)
        q = self.tsallis_q
        bregman = (q * new).exp() - q * ((q - 1) * old + new).exp() + (q - 1) * (q * old).exp()
        return bregman.sum(-1) / (q - 1)
