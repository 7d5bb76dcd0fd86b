"""Lp-Reg: protects unlikely but sensible tokens of wrong answers by a pull towards the policy without its noise.

    proxy(v) ∝ π_old(v)·1[π_old(v) > κ·max_v π_old(v)]
    J = agg[clip(r, 0, U)·A − β·1[π(y_t) < δ_ρ ∧ A_t < 0 ∧ proxy(y_t) > 0]·KL(proxy ‖ π)]

δ_ρ: the ρ-quantile of the probabilities of the sampled tokens of the batch.
Paper: Huang et al., "Low-probability tokens sustain exploration in reinforcement learning with verifiable reward",
2510.03222 (eqs. 5, 6). `literal` is the released code instead: the ρ of the tokens with A < 0 that have the lowest
log π; of them those with log π < log proxy(y_t); penalty β·k3(log π, log proxy) on the sampled token. As in the code
the clip is PPO's min(r·A, clip(r, 0, U)·A). Defaults: the paper: κ = 0.02, ρ = 1 % (14B; 0.5 % for 32B), β = 1
(`protection`), U = 10, mean over tokens. Ours: δ_ρ and the choice of tokens are of the whole batch at the policy that
sampled, from which the proxy comes; the literal share of tokens is rounded up.
Differs from GRPO by the region [0, U] and the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_range
from etr.controllers import added
from etr.distributions import taken, top_share
from etr.objective import Category, Paper, Reduction, State
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref


@register("lp_reg")
@dataclass(frozen=True)
class LpReg(GRPO):
    """GRPO on [0, 1 + eps_high] + agg[protection·1[protected]·KL(proxy ‖ π)]; kappa: min-p, rho: share of tokens."""

    aggregation: str = "token-mean"
    eps_low: float = 1.0
    eps_high: float = 9.0
    kappa: float = 0.02
    rho: float = 0.01
    protection: float = 1.0
    literal: bool = False

    paper: ClassVar[Paper] = Paper("Low-probability Tokens Sustain Exploration (Lp-Reg)", "2510.03222", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"protection": 0.0})
    examples = ({"literal": True}, {"rho": 0.5}, {"literal": True, "rho": 0.5, "kappa": 0.3})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "kappa", 0.0, 1.0)
        check_range(self, "rho", 0.0, 1.0)
        check_range(self, "protection", 0.0, float("inf"))

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"full_log_probs", "tokens"}

    @property
    def columns(self) -> tuple[str, ...]:
        return ("proxy", "protected")

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        clean = batch.clean()
        assert clean.full_log_probs is not None and clean.tokens is not None  # in `needs`
        full = clean.full_log_probs.detach()  # the old policy's: the proxy is a fixed target
        peak = full.exp().amax(-1, keepdim=True)
        kept = (full.exp() > self.kappa * peak) | (full.exp() == peak)  # the likeliest stays, also for kappa = 1
        proxy = torch.where(kept, full, -torch.inf).log_softmax(-1).exp()
        there = taken(proxy, clean.tokens)
        log_p, negative = clean.old_log_probs, clean.response_mask & (clean.token_advantages < 0)
        if self.literal:
            low, proxy = top_share(-log_p, negative, self.rho), there
        else:
            low = log_p < masked.quantile(log_p, clean.response_mask, self.rho)
        protected = negative & low & (there > 0)
        return batch.with_columns(proxy=proxy, protected=protected), state

    def regularizer(self, batch: Batch) -> Tensor | None:
        assert batch.full_log_probs is not None  # in `needs`
        proxy, protected = batch.columns["proxy"], batch.columns["protected"]
        if self.literal:
            target = torch.where(protected, proxy, 1.0).log().to(batch.log_probs.dtype)
            protected = protected & (batch.log_probs < target)
            divergence = kl_policy_to_ref(batch.log_probs, target, "k3")
        else:
            # Tokens that are not in the proxy may have log π = −∞; 0·(−∞) must be 0.
            cross = -(proxy * torch.where(proxy > 0, batch.full_log_probs, 0.0)).sum(-1)
            divergence = cross + torch.special.xlogy(proxy, proxy).sum(-1)
        penalty = torch.where(protected, self.protection * divergence, 0.0)
        return added(super().regularizer(batch), penalty)
