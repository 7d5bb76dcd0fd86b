"""The 80/20 rule: train on the fifth of the tokens with the highest entropy, where the answer forks.

    J = 1/N_S·Σ_{t∈S} min(r·A, clip(r)·A),   S: the ⌈0.2·N⌉ of the N response tokens with the largest H_t

Paper: Wang et al., "Beyond the 80/20 rule: high-entropy minority tokens drive effective reinforcement learning for LLM
reasoning", 2506.01939. Here S is a factor of the advantages, A'_t = A_t·1[t ∈ S]·N/N_S, which makes the mean over all
tokens the one over S. Defaults: the authors' script: 20 %, DAPO's bounds 0.2 and 0.28, no KL; TRL has it as
`top_entropy_quantile`. Ours: S is of the whole rollout batch, at the policy that sampled, and tokens as high as the
last of S all belong to it, so that the order of the responses does not matter.
Differs from DAPO by S.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import selection
from etr.batch import Batch
from etr.checks import check_range
from etr.distributions import top_share
from etr.objective import Category, Paper, Reduction
from etr.objectives.dapo import DAPO
from etr.registry import register
from etr.shaping import Shaping


@register("high_entropy_tokens")
@dataclass(frozen=True)
class HighEntropyTokens(Shaping, DAPO):
    """DAPO with A' = A·1[t ∈ S]·N/N_S, S the `fraction` of tokens with the highest entropy."""

    aggregation: str = "token-mean"
    fraction: float = 0.2

    paper: ClassVar[Paper] = Paper("Beyond the 80/20 Rule: High-Entropy Minority Tokens", "2506.01939", "verified")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("dapo", {"fraction": 1.0})
    examples = ({"fraction": 0.5},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "fraction", 0.0, 1.0, open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        mask = batch.response_mask
        weights = selection.weights(top_share(batch.entropy, mask, self.fraction), mask, self.aggregation)
        return batch.token_advantages * weights.to(batch.advantages.dtype)
