"""TRPO: the importance-weighted policy gradient, held near the old policy by a KL divergence.

    maximise  E[r·A]  subject to  mean KL(π_old ‖ π) ≤ δ                  (the method)
    J = agg[r·A − β·KL(π_old ‖ π)]                                        (this objective: the same as a penalty)

Paper: Schulman et al., "Trust Region Policy Optimization", 1502.05477. The paper's: surrogate, constraint, and a
natural-gradient step with conjugate gradient and a line search. That step is an optimiser and not a loss: it is
`etr.oracles.trpo.step`, for policies small enough to know exactly. Both belong together: at the old policy the maximum
of the penalised quadratic model is the constrained step of size δ if β = √(gᵀF⁻¹g/(2δ)); for a softmax policy and
advantages of mean square 1 (z-scores) gᵀF⁻¹g = 1, so β = 1/√(2δ), and δ = 0.01 (the authors' code) gives β = 7.07.
OUR choice: the fixed penalty with that β, and how KL is measured:
`kl` "sampled": r − 1 − log r of the sampled token, whose mean over π_old is the KL, and its gradient the KL's;
"full": Σ_a π_old(a)·log(π_old(a)/π(a)), over the whole vocabulary.
Differs from PPO: no clip; a soft bound on the mean instead of a hard one on every token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import ratios
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

    paper: ClassVar[Paper] = Paper("Trust Region Policy Optimization", "1502.05477", "verified")
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
        old = batch.clean().full_log_probs
        assert old is not None  # in `needs`
        return batch.with_columns(trpo_old=old.detach()), state  # the old policy is a constant of the update

    def regularizer(self, batch: Batch) -> Tensor | None:
        if self.beta == 0:
            return None
        if self.kl == "sampled":
            log_ratio = ratios.token(batch)
            return self.beta * (log_ratio.exp() - 1 - log_ratio)
        assert batch.full_log_probs is not None  # in `needs`
        old = batch.columns["trpo_old"].to(batch.full_log_probs.dtype)
        return self.beta * (old.exp() * (old - batch.full_log_probs)).sum(-1)
