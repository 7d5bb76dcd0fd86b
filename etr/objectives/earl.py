"""EARL: only tokens of high entropy are trained on.

    A'_t = A_t·1[H_t ≥ the q-quantile of H over the tokens of the response]

Paper: Shi et al., "EARL: entropy-aware RL alignment of LLMs for reliable RTL code generation", 2511.12033.
RECONSTRUCTED: only its abstract and a summary were at hand, which have an entropy gate with thresholds of a response
and a KL penalty (`beta`, whose size was not found: 0, as GRPO's) on verifiable-reward RL for Verilog. The gate's form
is the usual one (2506.01939) and q = 0.8 is ours; `level="batch"` takes one quantile over all tokens. The mean is still
over all tokens.
Differs from high_entropy_tokens: a quantile of each response, GRPO's region, and no larger step for fewer tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from etr import masked
from etr.batch import Batch
from etr.checks import check_choice, check_range
from etr.distributions import row_quantile
from etr.objective import Category, Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.shaping import Shaping


@register("earl")
@dataclass(frozen=True)
class EARL(Shaping, GRPO):
    """GRPO with A' = A·1[H ≥ quantile of H]."""

    quantile: float = 0.8
    level: str = "response"

    paper: ClassVar[Paper] = Paper("EARL: Entropy-Aware RL Alignment for RTL code", "2511.12033", "reconstructed")
    category: ClassVar[Category] = "entropy"
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"quantile": 0.0})
    examples = ({"level": "batch"},)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "level", ("response", "batch"))
        check_range(self, "quantile", 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"entropy"}

    def shape(self, batch: Batch) -> Tensor:
        assert batch.entropy is not None  # in `needs`
        within = row_quantile if self.level == "response" else masked.quantile
        gate = batch.entropy >= within(batch.entropy, batch.response_mask, self.quantile)
        return batch.token_advantages * gate
