"""Adaptive temperature: GRPO whose sampler is hotter where, or when, there is little entropy to lose.

    tokens   τ_s = τ·(1 + amount·clip(ĥ_s, −1, 1)), ĥ the scaled log-entropy of the state         (HAPO)
    switch   τ = high if the mean entropy H ≤ H0, else low                                        (AEPO)
    spread   τ = clamp(τ·(1 + amount·(u − EMA(u))), low, high), u the mean spread of rewards        (AGPO)

Papers: HAPO, 2509.16591 (authors' code): h = (x − x0)/std(x), x = ln H, x0 its 0.8-quantile, the positive side divided
by its maximum and the negative by |its minimum|, all of the previous step's batch; amount 0.05; by linear interpolation
here, nearest there. Their code divides the negative side by the minimum itself, so that ĥ ≥ 0 and nothing cools: that
is literal=True. AEPO, "arbitrary entropy", 2510.08141 (authors' code): 1.2, 0.8, H0 = 0.5; there the tempered
samples enter a term of their own, here they are the batch. AGPO, 2605.20722 (third-party): amount 0.15, from 0.5 to
1.5, u of a probe group; u = 4·Var(R) and the EMA's 0.9 are OURS. The defaults are HAPO's.
Only the sampler: HAPO's and AGPO's advantages and clips are objectives of their own. The samples are not π_old's; a
recipe's `correction` weighs them by π_old/π_τ. Another AEPO is about agents (`aepo_rollout`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.objective import Category, Paper, State
from etr.objectives.grpo import GRPO
from etr.registry import register

LEAST = 1e-8  # of an entropy before its logarithm, and of a scale before it divides


@register("adaptive_temperature")
@dataclass(frozen=True)
class AdaptiveTemperature(GRPO):
    """GRPO sampled at a temperature that follows entropy by token, entropy by step, or the spread of rewards."""

    kind: str = "tokens"
    base: float = 1.0
    amount: float = 0.05
    low: float = 0.8
    high: float = 1.2
    target: float = 0.5
    literal: bool = False

    paper: ClassVar[Paper] = Paper("HAPO (its adaptive temperature)", "2509.16591", "verified")
    category: ClassVar[Category] = "sampling"
    examples = ({"kind": "switch"}, {"kind": "spread", "amount": 0.15, "low": 0.5, "high": 1.5})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kind", ("tokens", "switch", "spread"))
        for name in ("base", "low", "high"):
            check_range(self, name, 0.0, 100.0, open_low=True)
        check_range(self, "amount", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        # Who lets answers begin anew also samples by `etr.samplers`, which is what is needed here.
        return super().needs | {"entropy", "rollout_log_probs", "group", "resets"}

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        names = ("seen", "pivot", "std", "top", "bottom", "entropy", "spread", "usual")
        zeros = torch.zeros(*run_shape, 1, 1, dtype=torch.float64, device=device)
        return {**super().init_state(run_shape, device), **dict.fromkeys(names, zeros)}

    def sampling_temperature(self, state: Mapping[str, Tensor], entropy: Tensor) -> Tensor:
        """τ of every state, `[*R, P, states]`; the first batch, of which nothing is known, at `base`."""
        if self.kind == "tokens":
            h = (entropy.double().clamp(min=LEAST).log() - state["pivot"]) / state["std"].clamp(min=LEAST)
            side = torch.where(h > 0, state["top"], state["bottom"]).clamp(min=LEAST)
            scaled = (h / side).clamp(-1, 1)
            known = self.base * (1 + self.amount * (scaled.abs() if self.literal else scaled))
        elif self.kind == "switch":
            known = torch.full_like(state["entropy"], self.low).masked_fill(state["entropy"] <= self.target, self.high)
        else:
            known = (self.base * (1 + self.amount * (state["spread"] - state["usual"]))).clamp(self.low, self.high)
        return torch.where(state["seen"] > 0, known, self.base).expand(entropy.shape)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        clean = batch.clean()
        assert clean.entropy is not None and batch.group is not None  # in `needs`
        mask, x = clean.response_mask, clean.entropy.double().clamp(min=LEAST).log()
        pivot, std = masked.quantile(x, mask, 0.8), masked.std(x, mask)
        h = (x - pivot) / std.clamp(min=LEAST)
        spread = 4 * batch.group.var.double().mean(-1)[..., None, None]
        usual = torch.where(state["seen"] > 0, 0.9 * state["usual"] + 0.1 * spread, spread)
        found = {"pivot": pivot, "std": std, "top": masked.largest(h, mask), "bottom": -masked.least(h, mask)}
        entropy = masked.mean(clean.entropy.double(), mask)
        more = {"entropy": entropy, "spread": spread, "usual": usual, "seen": torch.ones_like(state["seen"])}
        return batch, {**state, **found, **more}
