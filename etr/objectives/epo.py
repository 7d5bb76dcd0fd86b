"""EPO: an entropy bonus that is smoothed towards the entropy of past rollouts, for agents of many turns.

    L = L_PG − λ·agg_t(H_t − c·β(e)·P_t)
    P_t = pen·[(k_l·H̃_j − H_t)₊ + (H_t − k_r·H̃_j)₊],   H̃_j: mean entropy at environment step j over past epochs

Paper: Xu et al., "EPO: entropy-regularized policy optimization for LLM agents reinforcement learning", 2509.22576.
Its released code has P_t = 0 inside the band and `pen` outside, a step without gradient, which moves nothing; that is
`literal`. The hinge with gradient is RECONSTRUCTED (ours). The phase weight over `epochs` E is theirs, x the progress
in a half: β = 1 − 0.2·(1 − e^{−2x}), then 0.8·e^{−3x}. Defaults λ = 0.001, c = 1, pen = 0.1, band 0.8 to 1.2, E = 150:
the authors' code (their scripts: 0.5 to 1.5). Here an environment step is a turn, past epochs are past rollout batches,
and there is no penalty before the first; `steps` = 16 histories are ours. Left out: their switch, by which early
environment steps alone turn P off. Differs from entropy_bonus by P.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import controllers
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.entropy_bonus import EntropyBonus
from etr.registry import register


@register("epo")
@dataclass(frozen=True)
class EPO(EntropyBonus):
    """entropy_bonus + agg[coefficient·smoothing·β(e)·P]; turns from `steps` on share one history."""

    smoothing: float = 1.0
    penalty: float = 0.1
    band_low: float = 0.8
    band_high: float = 1.2
    epochs: int = 150
    steps: int = 16
    literal: bool = False

    paper: ClassVar[Paper] = Paper("EPO: Entropy-regularized Policy Optimization", "2509.22576", "reconstructed")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("entropy_bonus", {"smoothing": 0.0})
    examples = ({"literal": True},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "epochs", 1, float("inf"))
        check_range(self, "steps", 1, float("inf"))
        check_range(self, "band_low", 0.0, 1.0)
        check_range(self, "band_high", 1.0, float("inf"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"turns"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("entropy_low", "entropy_high", "phase")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        zeros = controllers.start(0.0, (*run_shape, self.steps), device)
        return {"total": zeros, "seen": zeros, "epoch": controllers.start(0.0, run_shape, device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.entropy is not None and clean.turns is not None  # in `needs`
        mask, place = clean.response_mask, clean.turns.long().clamp(0, self.steps - 1).flatten(-2)
        known, past = state["seen"] > 0, state["total"] / state["seen"].clamp(min=1)
        low = torch.where(known, past, 0.0).gather(-1, place).view(mask.shape)  # no history: a band without bounds
        high = torch.where(known, past, torch.inf).gather(-1, place).view(mask.shape)
        columns = {"entropy_low": self.band_low * low, "entropy_high": self.band_high * high}
        phase = controllers.as_column(self.phase(controllers.per_run(state["epoch"])), mask)
        kept, entropy = mask.double().flatten(-2), (clean.entropy.double() * mask).flatten(-2)
        count, total = (torch.zeros_like(state["total"]).scatter_add(-1, place, x) for x in (kept, entropy))
        following = {
            "total": state["total"] + total / count.clamp(min=1),  # every batch counts once, however many its tokens
            "seen": state["seen"] + (count > 0),
            "epoch": state["epoch"] + 1,
        }
        return batch.with_columns(phase=phase, **columns), following

    def phase(self, epoch: Tensor) -> Tensor:
        """β(e): from 1 to 0.83 in the first half of the epochs, from 0.8 to 0.04 in the second."""
        x = 2 * epoch / self.epochs
        late = 0.8 * (-3 * (x - 1).clamp(0, 1)).exp()
        return torch.where(x < 1, 1 - 0.2 * (1 - (-2 * x).exp()), late)

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.entropy is not None  # in `needs`
        low, high = (batch.columns[name].to(batch.entropy.dtype) for name in ("entropy_low", "entropy_high"))
        outside = (low - batch.entropy).relu() + (batch.entropy - high).relu()
        penalty = self.penalty * ((outside > 0).to(outside.dtype) if self.literal else outside)
        weight = self.coefficient * self.smoothing * controllers.from_column(batch.columns["phase"], penalty)
        return controllers.added(super().regularizer(batch), weight * penalty)
