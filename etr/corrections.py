"""Floor 1: weights for samples that another policy made than the one that is trained on them.

The rollout engine computes its probabilities with other kernels, often in lower precision, than the trainer. With
ρ = π_old / π_rollout the expectation under the engine's samples becomes the one that the objective means; truncating or
masking ρ bounds its variance. A correction is orthogonal to the objective: it multiplies the per-token objective. What
it takes away leaves the denominator as it was: the other tokens do not count more for it, unless `normalize` is set.

| method | fields |
|---|---|
| TIS, Seq-TIS | kind tis, level token or sequence |
| MIS (= IcePop at token level), Seq-MIS | kind mis, level token or sequence, low, high |
| Geo-RS | reject geometric (with kind none: weights of 1) |
| K2, K3 rejection | reject k2 or k3, reject_high |
| Seq-Mask-TIS (OpenRLHF) | kind is, reject geometric, reject_low, reject_high |
| off-policy sequence mask (DeepSeek-V3.2) | sequence_mask |
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from etr.batch import Batch
from etr.errors import FieldError, unknown
from etr.ratios import LOG_RATIO_LIMIT

KINDS = ("none", "is", "tis", "mis")
LEVELS = ("token", "sequence", "geometric")
# What a response or token is rejected by, and the bounds within which it is kept: those of verl's documentation.
REJECTS = {
    "none": (0.0, math.inf),
    "token": (0.5, 2.0),
    "sequence": (0.5, 2.0),
    "geometric": (0.999, 1.001),
    "k2": (0.0, 0.01),
    "k3": (0.0, 0.01),
}
LIMIT = "sequence_mask"  # name of the column that carries δ to the loss


@dataclass(frozen=True)
class Correction:
    """Importance weights between rollout engine and trainer. Raises FieldError for values out of range.

    kind: "none"; "is", w = ρ as it is; "tis", truncated: min(ρ, high) (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"); "mis", masked: ρ where low ≤ ρ ≤ high and 0 elsewhere (IcePop,
    2510.18855, at token level). level: ρ of each "token", of the whole "sequence" (Π_t ρ_t) or its "geometric" mean.
    reject: the weight is 0 unless reject_low ≤ x ≤ reject_high, where x is ρ of the "token", the "sequence" or its
    "geometric" mean, or the response's mean of ½·log²ρ ("k2") or of ρ − 1 − log ρ ("k3"); bounds of None are those of
    `REJECTS`. normalize: divide by the mean weight of all response tokens of the batch, so that it is 1.
    sequence_mask: δ of the off-policy sequence mask, which drops a response with A < 0 while
    mean_t(log π_rollout − log π) > δ under the policy of the moment; None for no mask.
    Bounds are of ρ. verl states those of token_k1, seq_sum_k1 and seq_mean_k1 for 1/ρ: its "a_b" is reject_low = 1/b
    and reject_high = 1/a here.
    Evidence: verified (the formulas of TRL, slime, OpenRLHF and of verl's documentation, by hand arithmetic).
    """

    kind: str = "none"
    level: str = "token"
    low: float = 0.5
    high: float = 2.0
    reject: str = "none"
    reject_low: float | None = None
    reject_high: float | None = None
    normalize: bool = False
    sequence_mask: float | None = None

    def __post_init__(self) -> None:
        for name, valid in (("kind", KINDS), ("level", LEVELS), ("reject", tuple(REJECTS))):
            if getattr(self, name) not in valid:
                raise FieldError(unknown(f"correction.{name}", str(getattr(self, name)), valid))
        for name in ("low", "high", "reject_low", "reject_high", "sequence_mask"):
            value = getattr(self, name)
            if value is None and name not in ("low", "high"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise FieldError(f"correction.{name} is {value!r}; give a number of at least 0")
        if not isinstance(self.normalize, bool):
            raise FieldError(f"correction.normalize is {self.normalize!r}; give true or false")
        if not self.low <= 1 <= self.high:
            raise FieldError(f"correction.low is {self.low:g} and high {self.high:g}; give low <= 1 <= high")
        on_policy = 0.0 if self.reject in ("k2", "k3") else 1.0
        low, high = self.reject_bounds
        if not low <= on_policy <= high:
            raise FieldError(
                f"correction.reject_low is {low:g} and reject_high {high:g}, which rejects even samples of the same "
                f"policy; give reject_low <= {on_policy:g} <= reject_high"
            )

    @property
    def active(self) -> bool:
        """Does it do anything about the difference between engine and trainer?"""
        return self.kind != "none" or self.reject != "none"

    @property
    def reject_bounds(self) -> tuple[float, float]:
        """(reject_low, reject_high), the defaults of `reject` where they are None."""
        low, high = REJECTS[self.reject]
        return (
            low if self.reject_low is None else self.reject_low,
            high if self.reject_high is None else self.reject_high,
        )

    def apply(self, batch: Batch) -> Batch:
        """The whole rollout batch with its weights, and with δ for the loss where there is a sequence mask."""
        assert batch.rollout_log_probs is not None  # of whoever sampled
        weights = self.weights(batch.old_log_probs, batch.rollout_log_probs, batch.response_mask)
        if weights is not None:
            batch = dataclasses.replace(batch, weights=weights if batch.weights is None else weights * batch.weights)
        if self.sequence_mask is None:
            return batch
        return batch.with_columns(**{LIMIT: torch.full_like(batch.old_log_probs[..., 0], self.sequence_mask)})

    def weights(self, old_log_probs: Tensor, rollout_log_probs: Tensor, mask: Tensor) -> Tensor | None:
        """Weights of tokens of a whole batch, `[*R, B, T]`, 0 on padding, without gradient; None where all are 1."""
        if not self.active:
            return None
        own, engine = (x.detach() for x in (old_log_probs, rollout_log_probs))  # data, both of them
        wide = torch.promote_types(own.dtype, torch.float32)  # sums over a response are no matter for 16 bits
        log_rho = torch.where(mask, own.to(wide) - engine.to(wide), 0.0)
        weight = self._weight(_at(self.level, log_rho, mask))
        weight = torch.where(mask & self._kept(log_rho, mask), weight, 0.0)
        if not self.normalize:
            return weight
        mean = weight.double().sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True).clamp(min=1)
        return torch.where(mean > 0, weight / torch.where(mean > 0, mean, 1.0), 0.0).to(weight.dtype)

    def _weight(self, log_rho: Tensor) -> Tensor:
        if self.kind == "none":
            return torch.ones_like(log_rho)
        # Bounded before exp(), which may overflow.
        weight = log_rho.clamp(max=LOG_RATIO_LIMIT if self.kind == "is" else math.log(self.high)).exp()
        return torch.where(_within(log_rho, self.low, self.high), weight, 0.0) if self.kind == "mis" else weight

    def _kept(self, log_rho: Tensor, mask: Tensor) -> Tensor:
        low, high = self.reject_bounds
        if self.reject in LEVELS:
            return _within(_at(self.reject, log_rho, mask), low, high)
        if self.reject == "none":
            return mask
        bounded = log_rho.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        divergence = bounded.square() / 2 if self.reject == "k2" else bounded.exp() - 1 - bounded
        mean = _at("geometric", divergence, mask)
        return (mean >= low) & (mean <= high)


def near_enough(batch: Batch, limit: Tensor) -> Tensor:
    """Bool `[*R, B, T]`: False for tokens with A < 0 of a response that the current policy has left behind.

    The off-policy sequence mask of DeepSeek-V3.2: mean_t(log π_rollout − log π) > δ; limit: δ, `[*R, B]`.
    """
    sampled = batch.old_log_probs if batch.rollout_log_probs is None else batch.rollout_log_probs
    drift = _at("geometric", sampled - batch.log_probs.detach(), batch.response_mask)  # which to drop is a decision
    return (batch.token_advantages >= 0) | (drift <= limit.unsqueeze(-1))


def _at(level: str, values: Tensor, mask: Tensor) -> Tensor:
    """Values of tokens, 0 on padding, their sum or their mean over the response."""
    if level == "token":
        return values
    total = values.sum(-1, keepdim=True)
    return total / mask.sum(-1, keepdim=True).clamp(min=1) if level == "geometric" else total


def _within(log_ratio: Tensor, low: float, high: float) -> Tensor:
    return (log_ratio >= (math.log(low) if low > 0 else -math.inf)) & (log_ratio <= math.log(high))
