"""SAFE: PPO with a critic's baseline and a KL penalty that a controller switches on, stronger at low entropy.

    A_t = whiten(R − V_t);   K ← 0.9·K + 0.1·KL̄(π ‖ π_ref);   R̃ ← 0.95·R̃ + 0.05·R̄;   e = ΔR̃ − 0.001
    threshold = clip((0.3 + 0.3·e + 0.01·Σe + 0.05·Δe)·phase, 0.1, 0.6), Σe within ±1
    penalty = 0.1·(K − threshold)₊²·max(0.5, 2/(H̄ + 0.1)) − 0.01·H_t
    phase, from batch rewards: fewer than 50: 1.5; the last 50 above the 50 before by 0.01: 1.2; else with a standard
    deviation below 0.02 and a mean above 0.7: 1; else 0.8

Paper: Maity, "SAFE: stable alignment finetuning with entropy-aware predictive control for RLHF", 2602.04651; formulas
and numbers are those of its released code. There the penalty is made of numbers without gradient and only adds a
constant: that is `literal`. RECONSTRUCTED (ours): its derivative times k2_t, 0.2·(K − threshold)₊·max(...)·k2_t, whose
gradient on-policy is that of KL(π ‖ π_ref). There is no soft minimum of two critics here: V is `values`. Left out: the
critic's loss, normalised rewards, the shorter step when a preview of the KL exceeds 0.5. Differs from PPO by all this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import controllers, masked
from etr.batch import Batch
from etr.checks import check_range
from etr.objective import Category, Paper, State
from etr.objectives.ppo import PPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref
from etr.shaping import Shaping

BASE, LEAST, MOST = 0.3, 0.1, 0.6  # of the threshold, in nats per token


@register("safe")
@dataclass(frozen=True)
class SAFE(Shaping, PPO):
    """PPO + agg[strength·gate·(K − threshold)₊·2·k2 − entropy_coefficient·H]."""

    aggregation: str = "token-mean"
    strength: float = 0.1
    entropy_floor: float = 2.0
    entropy_coefficient: float = 0.01
    window: int = 50
    literal: bool = False

    paper: ClassVar[Paper] = Paper("SAFE: Stable Alignment Finetuning", "2602.04651", "reconstructed")
    category: ClassVar[Category] = "entropy"
    examples = ({"literal": True},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "strength", 0.0, float("inf"))
        check_range(self, "window", 1, float("inf"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "values", "ref_log_probs", "entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "excess", "gate")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        zero = controllers.start(0.0, run_shape, device)
        past = controllers.start(0.0, (*run_shape, 2 * self.window), device)  # rewards of the last batches, newest last
        return {**dict.fromkeys(("kl", "reward", "integral", "error", "steps"), zero), "past": past}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.values is not None  # in `needs`
        raw, mask = batch.rewards.unsqueeze(-1) - batch.values, batch.response_mask
        spread = masked.std(raw, mask)
        return torch.where(spread > 0, (raw - masked.mean(raw, mask)) / torch.where(spread > 0, spread, 1.0), 0.0)

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        batch, state = super().prepare(batch, state)
        clean = batch.clean()
        assert clean.rewards is not None and clean.ref_log_probs is not None and clean.entropy is not None
        mask, rows = clean.response_mask, clean.response_mask.any(-1, keepdim=True)
        away, reward = (clean.old_log_probs - clean.ref_log_probs).double(), clean.rewards.unsqueeze(-1).double()
        kl, entropy = (masked.mean(masked.mean(x, mask, dim=-1), rows) for x in (away, clean.entropy.double()))
        was = {name: controllers.per_run(state[name]) for name in state if name != "past"}
        following, threshold = self.moved(was, state["past"], kl, masked.mean(reward, rows))
        excess = controllers.as_column((following["kl"] - threshold).relu(), mask)
        gate = controllers.as_column((self.entropy_floor / (entropy + 0.1)).clamp(min=0.5), mask)
        past = following.pop("past")
        carried = {name: controllers.carried(value) for name, value in following.items()}
        return batch.with_columns(excess=excess, gate=gate), {**carried, "past": past}

    def moved(self, was: State, past: Tensor, kl: Tensor, reward: Tensor) -> tuple[State, Tensor]:
        """The controller's next state and its threshold `[*R, 1, 1]`, from a batch's mean KL and reward."""
        begun = was["steps"] > 0
        mean = torch.where(begun, 0.95 * was["reward"] + 0.05 * reward, reward)
        error = mean - was["reward"] - 0.001
        integral = torch.where(begun, (was["integral"] + error).clamp(-1, 1), 0.0)
        pid = torch.where(begun, 0.3 * error + 0.01 * integral + 0.05 * (error - was["error"]), 0.0)
        past, steps = torch.cat([past[..., 1:], reward[..., 0]], -1), was["steps"] + 1
        threshold = ((BASE + pid) * self.phase(past, steps)).clamp(LEAST, MOST)
        numbers = {"kl": 0.9 * was["kl"] + 0.1 * kl, "reward": mean, "integral": integral, "steps": steps}
        return {**numbers, "error": torch.where(begun, error, 0.0), "past": past}, threshold

    def phase(self, past: Tensor, steps: Tensor) -> Tensor:
        """The multiplier of the threshold, `[*R, 1, 1]`, from the last batches' rewards `[*R, 2·window]`."""
        old, recent = past.unsqueeze(-2).split(self.window, -1)
        level = recent.mean(-1, keepdim=True)
        climbing = (steps >= 2 * self.window) & (level > old.mean(-1, keepdim=True) + 0.01)
        converged = (recent.std(-1, correction=0, keepdim=True) < 0.02) & (level > 0.7)
        settled = torch.where(climbing, 1.2, torch.where(converged, 1.0, torch.full_like(level, 0.8)))
        return torch.where(steps < self.window, 1.5, settled)

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.ref_log_probs is not None and batch.entropy is not None  # in `needs`
        excess, gate = (controllers.from_column(batch.columns[name], batch.entropy) for name in ("excess", "gate"))
        if self.literal:
            penalty = self.strength * excess.square() * gate
        else:
            k2 = kl_policy_to_ref(batch.log_probs, batch.ref_log_probs, "k2")
            penalty = 2 * self.strength * excess * gate * k2
        return penalty - self.entropy_coefficient * batch.entropy
