"""Where the entropy of an update went: an exact split over tokens, the law that predicts it, and the rest of that law.

For one state with old policy π and new policy π', r = π'/π, l = log π, l' = log π', H = −Σ π l:

    δ = −r·l' + l + (1 − H)(r − 1)            Σ_a π δ = H(π') − H(π), because Σ π (r − 1) = 0
      = −(l + H)(r − 1)  −  (r log r − r + 1)
        covariance law       KL(π' ‖ π) ≥ 0

So H(π') − H(π) = −Cov_π(log π, r) − KL(π' ‖ π), exactly and for steps of any size: an update always ends with less
entropy than the covariance law says. For a small step of the logits, r − 1 ≈ dz − Σ π dz, and the first term is the law
dH = −Cov_π(log π, dz) of Cui et al. (2505.22617). The exact form with its remainder is derived here.

Over whole sequences the chain rule adds one term, because other states are visited after the update. With d(s) the
probability of passing through s: H'_seq − H_seq = Σ_s d(s) [H'(s) − H(s)] + Σ_s [d'(s) − d(s)] H'(s).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from etr.batch import Batch, Mean
from etr.errors import InputError

SIGNS = ("pos", "neg", "zero", "unsampled")  # of the advantage; the last: tokens that no response contains
PROBABILITY_EDGES = (0.01, 0.1, 0.5, 0.9)  # inner boundaries of the bins of π_old(token)
BINS = len(PROBABILITY_EDGES) + 1
ROUNDING = 1e-6  # nats: a log π that is a boundary but for rounding, as under a uniform policy in float32, is on it


@dataclass(frozen=True, eq=False)
class EntropySplit:
    """Entropy change of an update by cell, nats per token; the cells add up to the total, and splits to larger ones.

    measured, predicted: the exact δ and its covariance part; sums `[*R, 4, 5, 2]` over sign of the advantage (`SIGNS`),
    bin of π_old (`PROBABILITY_EDGES`, a boundary belongs to the bin below) and clipped or not (A ≠ 0 and coefficient
    0); counts `[*R, 1, 1, 1]` of all tokens, so that every cell's value is its share of the whole.
    """

    measured: Mean
    predicted: Mean

    def __add__(self, other: object) -> EntropySplit:
        if not isinstance(other, EntropySplit):
            return NotImplemented
        return EntropySplit(self.measured + other.measured, self.predicted + other.predicted)

    def metrics(self) -> dict[str, Mean]:
        """Totals and margins `[*R]` under the names of `etr.diagnostics.METRICS`."""
        count = self.measured.count.flatten(-3)[..., 0]
        cells = {"change": self.measured.sum.sum((-3, -2, -1)), "predicted": self.predicted.sum.sum((-3, -2, -1))}
        cells |= by_name("change", SIGNS, self.measured.sum.sum((-2, -1)))
        cells |= by_name("change", bin_names(PROBABILITY_EDGES), self.measured.sum.sum((-3, -1)))
        cells["change_clipped"] = self.measured.sum[..., 1].sum((-2, -1))
        return {f"entropy/{name}": Mean(total, count) for name, total in cells.items()}


def token_changes(log_probs: Tensor, old_log_probs: Tensor, old_entropy: Tensor) -> tuple[Tensor, Tensor]:
    """δ = −r·l' + l + (1 − H)(r − 1) and its covariance part −(l + H)(r − 1), nats, in double precision.

    log_probs, old_log_probs: log π' and log π of the same tokens; old_entropy: H of π in their states; one shape.
    Weighted by π over a whole vocabulary, the first adds up to H(π') − H(π) and their difference to KL(π' ‖ π).

    >>> old, new = torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.1])
    >>> measured, predicted = token_changes(new.log(), old.log(), torch.full((2,), 2.0).log())
    >>> round(float((old * measured).sum()), 4), round(float((old * predicted).sum().abs()), 4)
    (-0.3681, 0.0)
    """
    old = old_log_probs.double()
    log_ratio = log_probs.double() - old
    excess = torch.expm1(log_ratio)  # r − 1 without the cancellation of small steps
    predicted = -(old + old_entropy.double()) * excess
    return predicted - ((1 + excess) * log_ratio - excess), predicted


def entropy_change(
    batch: Batch, old_entropy: Tensor, coefficient: Tensor, weights: Tensor | None = None
) -> EntropySplit:
    """The entropy change from the old policy of `batch` to its current one, split over its tokens.

    old_entropy: H of the old policy in each token's state, nats; coefficient: `etr.gradient_coefficient` at the current
    policy; weights: of each token, 1 if not given; all `[*R, B, T]`. With weights of an enumeration (the probability
    that the old policy takes the token) the total is exact; over tokens sampled independently of the update it is an
    unbiased estimate; over the tokens that the update was made from it is an in-sample figure, biased by their luck.
    Raises InputError for other shapes.
    """
    _require_shape(batch, old_entropy=old_entropy, coefficient=coefficient, weights=weights)
    kept = batch.response_mask
    new, old, entropy = (
        torch.where(kept, x.detach(), 0.0)  # a report, not part of the loss
        for x in (batch.log_probs, batch.old_log_probs, old_entropy)
    )
    advantages = batch.token_advantages.expand_as(new)
    sign = torch.where(advantages > 0, 0, torch.where(advantages < 0, 1, 2))
    clipped = (advantages != 0) & (coefficient == 0)
    weight = kept.double() if weights is None else torch.where(kept, weights.double(), 0.0)
    return split(new, old, entropy, weight, sign, clipped)


def split(new: Tensor, old: Tensor, entropy: Tensor, weight: Tensor, sign: Tensor, clipped: Tensor) -> EntropySplit:
    """Weighted sums by cell of tokens `[*R, B, T]`: log π', log π, H, weight, place in `SIGNS`, clipped or not."""
    edges = torch.tensor(PROBABILITY_EDGES, dtype=torch.float64, device=old.device).log()
    bins = torch.bucketize(old.double().contiguous() - ROUNDING, edges)
    cell = (sign * BINS + bins) * 2 + clipped
    count = weight.sum((-2, -1))[..., None, None, None]
    empty = weight.new_zeros(*weight.shape[:-2], len(SIGNS) * BINS * 2)
    measured, predicted = (
        empty.scatter_add(-1, cell.flatten(-2), (weight * change).flatten(-2)).unflatten(-1, (len(SIGNS), BINS, 2))
        for change in token_changes(new, old, entropy)
    )
    return EntropySplit(Mean(measured, count), Mean(predicted, count))


def visit_change(batch: Batch, entropy: Tensor, weights: Tensor | None = None) -> Mean:
    """Σ_t (R_t − 1) H'(s_t) per token, R_t = Π_{k<t} r_k: entropy that came from visiting other states, `[*R]`.

    entropy: H' of the current policy in each token's state, nats, `[*R, B, T]`; weights as in `entropy_change`. Added
    to its total it gives the change of the entropy of whole sequences per token: exactly under enumeration; over
    sampled long responses the products R_t make the estimate useless. Raises InputError for other shapes.
    """
    _require_shape(batch, entropy=entropy, weights=weights)
    kept = batch.response_mask
    log_ratio = torch.where(kept, (batch.log_probs - batch.old_log_probs).detach(), 0.0).double()  # a report
    before = log_ratio.cumsum(-1) - log_ratio
    weight = kept.double() if weights is None else torch.where(kept, weights.double(), 0.0)
    change = torch.expm1(before) * torch.where(kept, entropy.detach(), 0.0)  # likewise
    return Mean((weight * change).sum((-2, -1)), weight.sum((-2, -1)))


def by_name(prefix: str, names: tuple[str, ...], values: Tensor) -> dict[str, Tensor]:
    """The last dimension of `values` as one entry per name.

    >>> by_name("change", ("pos", "neg"), torch.tensor([1.0, 2.0]))
    {'change_pos': tensor(1.), 'change_neg': tensor(2.)}
    """
    return {f"{prefix}_{name}": values[..., i] for i, name in enumerate(names)}


def bin_names(edges: tuple[float, ...]) -> tuple[str, ...]:
    """Names of the bins of [0, 1] between inner boundaries.

    >>> bin_names((0.1, 0.5))
    ('p0-0.1', 'p0.1-0.5', 'p0.5-1')
    """
    ends = (0.0, *edges, 1.0)
    return tuple(f"p{low:g}-{high:g}" for low, high in pairwise(ends))


def _require_shape(batch: Batch, **values: Tensor | None) -> None:
    for name, value in values.items():
        if value is not None and value.shape != batch.log_probs.shape:
            raise InputError(
                f"{name} has shape {tuple(value.shape)} but log_probs {tuple(batch.log_probs.shape)}; give one value "
                "per token"
            )
