"""ARES: explore where a prompt is hard, be brief where it is easy; uncertain windows are counted and rewarded for it.

    n_i = tokens whose mean entropy with the next ones (`window` in all) is above a threshold
    R'_i = R_i + E_i with δ = n_i − n*, M = max(1, c·n*), h Huber, s(x) = 1/(1+e^{−x/T}), C = α (1.2·α if hard)
    right   E = −C·min(1, h((δ−M)₊)/(M+k)) if acc(q) ≥ 2/3 (easy), the same of |δ| if ≥ 1/3 (medium);
            hard: E = C·s(δ+M) if δ ≥ −M, else −C·min(1, ½·h(−δ−M)/(M+k));      wrong: E = C·s((δ−M)₊)·(0.6, 0.8, 1)
    α ← clip(α ± 0.05·(mean n − n*), 0, 2), + easy and medium, − hard;   ln β ← ln β + 0.05·clip(e, ±0.2) every 100

Paper: Chen et al., "ARES", 2510.08457; e is a moving average of KL/target − 1; α, n*, e and β are kept by difficulty.
Constants are the authors' code's. Ours: any token may trigger (theirs: some words); the threshold is a batch's own
`percentile` .95 (theirs: of validation samples); n* is a moving mean (`keep` .9), as α would not move against a batch's
own; the KL is k3 of π_old; β's start. Not AEPO of 2510.08141 (arbitrary entropy) or 2510.14545 (agentic).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import difficulty, masked
from etr.batch import Batch
from etr.checks import check_range, check_ranges
from etr.groups import Groups
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref
from etr.shaping import Shaping

CAP, SIGN = (1.0, 1.0, 1.2), (1.0, 1.0, -1.0)  # of C, and of the step of α


@register("ares")
@dataclass(frozen=True)
class ARES(Shaping, GRPO):
    """GRPO with an entropy reward by difficulty and a KL coefficient for each."""

    beta: float = 0.01
    window: int = 4
    threshold: float | None = None
    percentile: float = 0.95
    easy: float = 2 / 3
    medium: float = 1 / 3
    alpha: float = 0.5
    alpha_max: float = 2.0
    alpha_rate: float = 0.05
    keep: float = 0.9
    kl_target: float = 0.01
    kl_rate: float = 0.05
    kl_keep: float = 0.97
    kl_dead: float = 0.02
    kl_most: float = 0.2
    kl_every: int = 100

    paper: ClassVar[Paper] = Paper("ARES (Adaptive Entropy Policy Optimization)", "2510.08457", "verified")
    category: ClassVar[Category] = "advantage"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"alpha": 0.0, "alpha_rate": 0.0, "beta": 0.0})
    examples = ({"beta": 0.0}, {"threshold": 1.0, "kl_every": 1})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "kl_every", "kl_target"):
            check_range(self, name, 0, 10**9, open_low=True)
        check_ranges(self, 0, 1, "percentile", "easy", "medium", "keep", "kl_keep")

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"rewards", "group_ids", "entropy"}

    @property
    def columns(self) -> tuple[str, ...]:
        return (*super().columns, "entropy_reward", "kl_weight")

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        first = {"alpha": self.alpha, "target": -1.0, "kl": 0.0, "log_beta": 0.0, "step": 0.0}
        shape = (*run_shape, difficulty.LEVELS)
        return {k: torch.full(shape, v, dtype=torch.float64, device=device) for k, v in first.items()}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.rewards is not None and clean.group_ids is not None and clean.entropy is not None  # in `needs`
        right = clean.rewards > 0.5
        accuracy = Groups(clean.rewards, clean.group_ids).mean(right.to(clean.rewards.dtype))
        levels, alpha = difficulty.Levels(accuracy, self.easy, self.medium), state["alpha"]
        near = difficulty.window_entropy(clean.entropy, clean.response_mask, self.window)
        count = difficulty.high(near, clean.response_mask, self.threshold, self.percentile)
        mean = levels.mean(count)
        target = torch.where((state["target"] < 0) & levels.seen, mean, state["target"])
        wanted, cap = levels.at(target), levels.at(alpha * alpha.new_tensor(CAP))
        reward = difficulty.entropy_reward(count - wanted, wanted, levels.of, right, cap)
        step = self.alpha_rate * alpha.new_tensor(SIGN) * torch.where(levels.seen, mean - target, 0.0)
        after = {
            **self.kl_control(clean, state, levels),
            "alpha": (alpha + step).clamp(0, self.alpha_max),
            "target": torch.where(levels.seen, self.keep * target + (1 - self.keep) * mean, target),
        }
        columns = {"entropy_reward": reward, "kl_weight": levels.at(state["log_beta"]).exp()}
        return super().prepare(batch.with_columns(**columns), after)

    def kl_control(self, batch: Batch, state: State, levels: difficulty.Levels) -> State:
        if self.beta == 0:
            return state
        assert batch.ref_log_probs is not None  # in `needs`
        k3 = kl_policy_to_ref(batch.old_log_probs, batch.ref_log_probs)
        new = levels.mean(masked.mean(k3, batch.response_mask, -1).squeeze(-1)) / self.kl_target - 1
        gap = torch.where(levels.seen, self.kl_keep * state["kl"] + (1 - self.kl_keep) * new, state["kl"])
        due = ((state["step"] + 1) % self.kl_every == 0) & (gap.abs() > self.kl_dead)
        move = torch.where(due, self.kl_rate * gap.clamp(-self.kl_most, self.kl_most), 0.0)
        return {**state, "kl": gap, "log_beta": state["log_beta"] + move, "step": state["step"] + 1}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.rewards is not None and batch.group_ids is not None  # in `needs`
        return self.advantage(batch.rewards + batch.columns["entropy_reward"].to(batch.rewards.dtype), batch.group_ids)

    def regularizer(self, batch: Batch) -> Tensor | None:
        penalty = super().regularizer(batch)
        return None if penalty is None else penalty * batch.columns["kl_weight"].unsqueeze(-1).to(penalty.dtype)
