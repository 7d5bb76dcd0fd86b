"""Adaptive KL: GRPO's KL penalty with a coefficient that keeps the divergence from the reference at a target.

    L = L_PG + β_k·agg_t(KL̂_t),   β_{k+1} = β_k·(1 + clip(KL̄_k/KL* − 1, −0.2, 0.2)·n/horizon)

KL̄_k is the mean estimate over the n responses of the rollout batch, each first over its own tokens.
Paper: Ziegler et al., "Fine-tuning language models from human preferences", 1909.08593; the form with n/horizon is that
of published trainers. There the KL is taken off the reward; as a loss, which is ours, the estimators differ: k2 has the
gradient of KL(π ‖ π_ref), k3 that of KL(π_ref ‖ π), k1 none on average. Default k3, as GRPO has it.
Defaults: β_0 = 0.001, KL* = 0.1 nats per token, horizon 10000: published trainers' configurations; 0.2: the paper.
Differs from GRPO: β is state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor

from etr import controllers, masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.regularizers import KINDS, kl_policy_to_ref

Kind = Literal["k1", "k2", "k3"]


@register("adaptive_kl")
@dataclass(frozen=True)
class AdaptiveKL(GRPO):
    """GRPO + agg[β·KL̂], where β starts at `beta` and grows while the measured KL is above `target`."""

    beta: float = 0.001
    target: float = 0.1
    horizon: float = 10000.0
    error_limit: float = 0.2
    kl_kind: str = "k3"

    paper: ClassVar[Paper] = Paper("Fine-Tuning Language Models from Human Preferences", "1909.08593", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"error_limit": 0.0, "kl_kind": "k3", "beta": 0.1})
    examples = ({"kl_kind": "k2", "beta": 0.1}, {"kl_kind": "k1", "beta": 0.1})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kl_kind", KINDS)
        for name in ("target", "horizon"):
            check_range(self, name, 0.0, float("inf"), open_low=True)
        check_range(self, "error_limit", 0.0, float("inf"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_log_probs"})

    @property
    def columns(self) -> tuple[str, ...]:
        return ("kl_coefficient",)

    def init_state(self, run_shape: tuple[int, ...], device: torch.device) -> State:
        return {"beta": controllers.start(self.beta, run_shape, device)}

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.ref_log_probs is not None  # in `needs`
        mask, beta = clean.response_mask, controllers.per_run(state["beta"])
        kl = kl_policy_to_ref(clean.old_log_probs.double(), clean.ref_log_probs.double(), cast(Kind, self.kl_kind))
        rows = mask.any(-1, keepdim=True)
        mean = masked.mean(masked.mean(kl, mask, dim=-1), rows)
        error = torch.clamp(mean / self.target - 1, -self.error_limit, self.error_limit)
        following = beta * (1 + error * rows.sum(-2, keepdim=True) / self.horizon)
        batch = batch.with_columns(kl_coefficient=controllers.as_column(beta, mask))
        return batch, {"beta": controllers.carried(following)}

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.ref_log_probs is not None  # in `needs`
        kl = kl_policy_to_ref(batch.log_probs, batch.ref_log_probs, cast(Kind, self.kl_kind))
        return controllers.from_column(batch.columns["kl_coefficient"], kl) * kl
