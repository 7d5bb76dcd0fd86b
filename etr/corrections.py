"""Floor 1: weights for samples that another policy made than the one that is trained on them.

The rollout engine computes its probabilities with other kernels, often in lower precision, than the trainer. With
w = π_old / π_rollout the expectation under the engine's samples becomes the one that the objective means; truncating or
masking w bounds its variance. A correction is orthogonal to the objective: it multiplies the per-token objective.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from etr.errors import FieldError, unknown

KINDS = ("none", "tis", "mis")
LEVELS = ("token", "sequence", "geometric")


@dataclass(frozen=True)
class Correction:
    """Importance weights between rollout engine and trainer. Raises FieldError for values out of range.

    kind: "none"; "tis", truncated: min(w, high) (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"); "mis", masked: w where low ≤ w ≤ high and 0 elsewhere (IcePop, 2510.18855, at token
    level). level: w of each "token", of the whole "sequence" (Π_t w_t) or its "geometric" mean per token.
    Evidence: third-party (read in descriptions of published trainers).
    """

    kind: str = "none"
    level: str = "token"
    low: float = 0.5
    high: float = 2.0

    def __post_init__(self) -> None:
        for name, valid in (("kind", KINDS), ("level", LEVELS)):
            if getattr(self, name) not in valid:
                raise FieldError(unknown(f"correction.{name}", str(getattr(self, name)), valid))
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise FieldError(f"correction.{name} is {value!r}; give a number of at least 0")
        if not self.low <= 1 <= self.high:
            raise FieldError(f"correction.low is {self.low:g} and high {self.high:g}; give low <= 1 <= high")

    def weights(self, old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> Tensor | None:
        """Weights of tokens, `[*R, B, T]`, 0 on padding, without gradient; None for kind "none"."""
        if self.kind == "none":
            return None
        log_weight = torch.where(mask, old_log_probs.detach() - rollout_log_probs.detach(), 0.0)
        if self.level != "token":
            total = log_weight.sum(-1, keepdim=True)
            log_weight = total / (mask.sum(-1, keepdim=True).clamp(min=1) if self.level == "geometric" else 1)
        weight = log_weight.clamp(max=math.log(self.high)).exp()  # bounded before exp(), which may overflow
        if self.kind == "mis":
            weight = torch.where((log_weight >= _log(self.low)) & (log_weight <= math.log(self.high)), weight, 0.0)
        return torch.where(mask, weight, 0.0)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
