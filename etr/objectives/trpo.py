"""TRPO: the importance-weighted policy gradient, held near the old policy by a KL divergence.

    maximise  E[r·A]  subject to  mean KL(π_old ‖ π) ≤ δ                  (the method)
    J = agg[r·A − β·KL(π_old ‖ π)]                                        (this objective: the same as a penalty)

Paper: Schulman et al., "Trust Region Policy Optimization", 1502.05477. The paper's: surrogate, constraint, and a
natural-gradient step with conjugate gradient and a line search. That step is an optimiser and not a loss: it is
`etr.oracles.trpo.step`, for policies small enough to know exactly, and the part that is verified. Both belong together:
at the old policy the maximum of the penalised quadratic model is the constrained step of size δ if β = √(gᵀF⁻¹g/(2δ)).
For a softmax policy gᵀF⁻¹g is the mean square of E[A | state, token]: with advantages of mean square 1 (z-scores) 1 in
a bandit without noise, and at most 1 otherwise, so that KL ≤ δ with β = 1/√(2δ); δ = 0.01 (the authors' code) gives
β = 7.07. RECONSTRUCTED, so OURS: the fixed penalty with that β, z-scores, the mean over tokens, and how KL is measured:
`kl` "sampled": r − 1 − log r of the sampled token, whose mean over π_old is the KL, and its gradient the KL's;
"full": Σ_a π_old(a)·log(π_old(a)/π(a)), over the whole vocabulary.
Differs from PPO: no clip; a soft bound on the mean instead of a hard one on every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import distributions, ratios
from etr.batch import Batch
from etr.checks import check_choice
from etr.objective import Objective, Paper, Reduction, Scope, State
from etr.registry import register


@register("trpo")
@dataclass(frozen=True)
class TRPO(Objective):
    """J = agg[r·A] − β·KL(π_old ‖ π), β per token in nats."""

    aggregation: str = "token-mean"
    beta: float = 7.07
    kl: str = "sampled"

    paper: ClassVar[Paper] = Paper("Trust Region Policy Optimization", "1502.05477", "reconstructed")
    reduces_to: ClassVar[Reduction | None] = Reduction("ppo", {"beta": 0.0}, {"eps_low": 1.0, "eps_high": 1e30})
    examples = ({"kl": "full"}, {"beta": 0.0})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "kl", ("sampled", "full"))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"full_log_probs"}) if self.kl == "full" else frozenset()

    @property
    def columns(self) -> tuple[str, ...]:
        return ("trpo_old",) if self.kl == "full" else ()

    @property
    def scope(self) -> Scope:
        return "token"  # the column is the token's own old distribution

    def prepare(self, batch: Batch, state: State) -> tuple[Batch, State]:
        if self.kl == "sampled":
            return batch, state
        return batch.with_columns(trpo_old=distributions.table(batch)), state

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.beta == 0:
            return None
        if self.kl == "sampled":
            log_ratio = ratios.token(batch)
            return self.beta * (log_ratio.exp() - 1 - log_ratio)
        new, old = distributions.new_and_old(batch, "trpo_old")
        return self.beta * (old.exp() * (old - new)).sum(-1)
