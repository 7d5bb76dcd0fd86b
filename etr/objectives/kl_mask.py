"""KL-Mask: GRPO that stops learning from tokens whose probability has gone too far from the reference policy's.

No paper: the `kl_mask_threshold` of TorchRL's GRPOLoss.
    J = agg[M_t·min(r·A, clip(r, 1−ε_low, 1+ε_high)·A)],    M_t = 1[½·(log π − log π_ref)² ≤ delta]
½d² is the k2 estimate of the KL to the reference (`etr.regularizers`), so a token is dropped on both sides of it.
TorchRL takes dropped tokens out of its mean; here they count as 0 and the denominator stays, so that micro-batches add
up. delta = 0.5, one nat of log-ratio: ours, TorchRL's default is no mask. Differs from `grpo` in M.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from etr.batch import Batch, Region
from etr.checks import check_range
from etr.objective import Paper, Reduction
from etr.objectives.grpo import GRPO
from etr.registry import register
from etr.regularizers import kl_policy_to_ref


@register("kl_mask")
@dataclass(frozen=True)
class KLMask(GRPO):
    """GRPO without the tokens of which ½·(log π − log π_ref)² > delta."""

    delta: float = 0.5

    paper: ClassVar[Paper] = Paper("TorchRL's GRPOLoss (kl_mask_threshold)", "", "verified")
    reduces_to: ClassVar[Reduction | None] = Reduction("grpo", {"delta": 1e9})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(self, "delta", 0.0, 1e9, open_low=True)

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | {"ref_log_probs"}

    @property
    def exceptions(self) -> Mapping[str, str]:
        return {**super().exceptions, "pessimistic": "a dropped token counts as 0, which is more than a negative r·A"}

    def surrogate(self, batch: Batch, log_ratio: Tensor, region: Region) -> Tensor:
        assert batch.ref_log_probs is not None  # in `needs`
        near = kl_policy_to_ref(batch.log_probs.detach(), batch.ref_log_probs, "k2") <= self.delta  # a decision
        return torch.where(near, super().surrogate(batch, log_ratio, region), 0.0)
