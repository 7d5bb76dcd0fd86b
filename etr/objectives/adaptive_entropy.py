"""Adaptive entropy bonus: a controller moves the coefficient of the bonus so that entropy stays at a target.

    L = L_PG − c_k·agg_t(H_t), and after step k, with H̄_k the mean entropy over the tokens of its rollout batch:
    bang-bang      c ← c ± step, up while H̄ < H*; the bonus is paid only while H̄ < H*
    integral       c ← c + step·(H* − H̄), the dual variable of the constraint H̄ ≥ H*
    sac            log c ← log c − step·c·(H̄ − H*), descent on c·(H̄ − H*) as in Soft Actor-Critic (1812.05905)
    proportional   c = c_0·H*/H̄, of the present batch
    and always 0 ≤ c ≤ limit

Paper: He et al., "Skywork Open Reasoner 1 technical report", 2505.22312 (bang-bang). The others are in released code
too, integral in SIREN's, sac in that of LUFFY and HPT; that sac descends plainly is ours.
Defaults: Skywork's script: bang-bang, H* = 0.2, step 1e-4, limit 0.005, c_0 = 0. That the limit also holds for the
other controllers is ours; `coefficient` is c_0 and must be above 0 for sac and proportional.
Differs from entropy_bonus: c is state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import controllers, masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.errors import FieldError
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.entropy_bonus import EntropyBonus
from etr.objectives.grpo import GRPO
from etr.registry import register

KINDS = ("bang-bang", "integral", "sac", "proportional")


@register("adaptive_entropy")
@dataclass(frozen=True)
class AdaptiveEntropy(EntropyBonus):
    """GRPO − agg[c·H] with c moved towards mean entropy = target, in nats per token."""

    coefficient: float = 0.0
    controller: str = "bang-bang"
    target: float = 0.2
    step: float = 1e-4
    limit: float = 0.005

    paper: ClassVar[Paper] = Paper("Skywork Open Reasoner 1 Technical Report", "2505.22312", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction(
        "entropy_bonus", {"controller": "integral", "step": 0.0, "coefficient": 0.001}
    )
    examples = (
        {"coefficient": 0.004, "target": 3.0},
        {"controller": "integral", "coefficient": 0.001},
        {"controller": "sac", "coefficient": 0.001, "step": 0.1},
        {"controller": "proportional", "coefficient": 0.001},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "controller", KINDS)
        check_range(self, "step", 0.0, float("inf"))
        check_range(self, "limit", 0.0, float("inf"))
        check_range(self, "coefficient", 0.0, float("inf"))

    @property
    def columns(self) -> tuple[str, ...]:
        return ("entropy_coefficient",)

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        if self.controller in ("sac", "proportional") and self.coefficient == 0:
            raise FieldError(
                f"AdaptiveEntropy.coefficient is 0, from where the '{self.controller}' controller never moves; "
                "give a number above 0"
            )
        return {"coefficient": controllers.start(min(self.coefficient, self.limit), run_shape, device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.entropy is not None  # in `needs`
        mean = masked.mean(clean.entropy.double(), clean.response_mask)
        used, following = self.moved(controllers.per_run(state["coefficient"]), mean)
        column = controllers.as_column(used, clean.response_mask)
        return batch.with_columns(entropy_coefficient=column), {"coefficient": controllers.carried(following)}

    def moved(self, now: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The coefficient of this step and the next one, from the present one and the mean entropy, `[*R, 1, 1]`."""
        short = self.target - mean
        if self.controller == "bang-bang":
            following = torch.where(short > 0, now + self.step, now - self.step)
            return torch.where(short > 0, now, 0.0), following.clamp(0.0, self.limit)
        if self.controller == "integral":
            return now, (now + self.step * short).clamp(0.0, self.limit)
        if self.controller == "sac":
            return now, (now * (self.step * now * short).exp()).clamp(0.0, self.limit)
        used = (self.coefficient * self.target / mean.clamp(min=1e-8)).clamp(0.0, self.limit)
        return used, used

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.entropy is not None  # in `needs`
        coefficient = controllers.from_column(batch.columns["entropy_coefficient"], batch.entropy)
        return controllers.added(GRPO.regularizer(self, batch), -coefficient * batch.entropy)
