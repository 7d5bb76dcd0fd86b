"""Flexible entropy control: clip bounds that follow the token's probability, on a schedule for the entropy.

Paper: Chen et al., "Flexible Entropy Control in RLVR with a Gradient-Preserving Perspective", 2602.09782. A wide upper
bound for unlikely and a narrow one for likely tokens raises entropy; the same for the lower bound lowers it. With
ε(π) = height − slope·π, a condition on r that contains π itself, and both sides solved for r,
    high = (1 + height)/(1 + slope·π_old),    low = (1 − height)/(1 − slope·π_old)
The bounds in use mix ε(π) with the plain ε: ε⁺ = ε_high + u·(ε(π) − ε_high), ε⁻ = ε_low + v·(ε(π) − ε_low), where at
rollout batch k of `steps` (the last, when there are more), λ = 1 − 2k/steps:
    id   raise, then lower:  u = λ, v = 0 in the first half;      u = 0, v = 1 + λ in the second
    did  lower, raise, lower: u = 1 − λ, v = 0 in the first half; u = 1, v = 1 + λ in the second
    od   oscillate: u = 1 from H ≤ 0.2·H₀ on, v = 1 from H > 0.2·H₀ + 0.8·H₀·(1 − k/steps) on, by turns; H the batch's
         mean entropy and H₀ the first one
The authors' (their own summary): ε(π) linear, its upper bound, the schedules. RECONSTRUCTED: the lower bound, as the
upper one's mirror image; OURS, none was found: height = 0.3 and slope = 0.2 (ε(½) = 0.2, GRPO's), steps = 200.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import checks, controllers, masked
from etr.batch import Batch, Region
from etr.objective import Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register

SCHEDULES = ("id", "did", "od")
LEAST = 0.2  # H_min / H₀


@register("flexible_entropy")
@dataclass(frozen=True)
class FlexibleEntropy(GRPO):
    """GRPO with ε⁺ and ε⁻ between the plain ε and height − slope·π, by a schedule over rollout batches."""

    schedule: str = "id"
    steps: int = 200
    height: float = 0.3
    slope: float = 0.2

    paper: ClassVar[Paper] = Paper("Flexible Entropy Control in RLVR", "2602.09782", "reconstructed")
    category = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "grpo", {"height": 0.2, "slope": 0.0, "eps_low": 0.2, "eps_high": 0.2}
    )
    examples = ({"schedule": "did"}, {"schedule": "od", "eps_high": 0.28})

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.check_choice(self, "schedule", SCHEDULES)
        checks.check_ranges(self, 1, 1e9, "steps")
        checks.check_ranges(self, 0.0, 0.99, "height")
        checks.check_ranges(self, 0.0, self.height, "slope")  # so that ε(π) >= 0

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | ({"entropy"} if self.schedule == "od" else set())

    @property
    def columns(self) -> tuple[str, ...]:
        return ("flexible_upper", "flexible_lower")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        zero = controllers.start(0.0, run_shape, device)
        return {"step": zero, "raising": zero, "first_entropy": zero}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        progress = (state["step"] / self.steps).clamp(max=1.0)
        if self.schedule == "od":
            upper, first = self._oscillate(batch.clean(), state, progress)
            lower = 1 - upper
        else:
            half, first = 1 - 2 * progress, state["first_entropy"]
            rising = (half, 1 - half)[self.schedule == "did"]
            upper = torch.where(half >= 0, rising, 1.0 if self.schedule == "did" else 0.0)
            lower = torch.where(half >= 0, 0.0, 1 + half)
        mixes = (controllers.as_column(controllers.per_run(mix), batch.response_mask) for mix in (upper, lower))
        state = {"step": state["step"] + 1, "raising": upper, "first_entropy": first}
        return batch.with_columns(**dict(zip(self.columns, mixes, strict=True))), state

    def _oscillate(self, clean: Batch, state: State, progress: Tensor) -> tuple[Tensor, Tensor]:
        """Is entropy to be raised (1.0) or lowered (0.0), with a memory between the two thresholds; and H₀."""
        assert clean.entropy is not None  # in `needs`
        entropy = controllers.carried(masked.mean(clean.entropy.double(), clean.response_mask))
        first = torch.where(state["step"] == 0, entropy, state["first_entropy"])
        low, high = LEAST * first, LEAST * first + (1 - LEAST) * first * (1 - progress)
        return torch.where(entropy <= low, 1.0, torch.where(entropy > high, 0.0, state["raising"])), first

    def region(self, batch: Batch, log_ratio: Tensor) -> Region:
        likely = batch.old_log_probs.exp()
        upper, lower = (controllers.from_column(batch.columns[name], log_ratio) for name in self.columns)
        high = (1 + self.eps_high + upper * (self.height - self.eps_high)) / (1 + upper * self.slope * likely)
        low = (1 - self.eps_low - lower * (self.height - self.eps_low)) / (1 - lower * self.slope * likely)
        return Region(low.clamp(max=1.0), high.clamp(min=1.0))
