"""One call per (micro-)batch after an update, at every scale: sums that add, and one reading at the end."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from etr.batch import Batch, Mean
from etr.loss import gradient_coefficient, policy_loss
from etr.objective import Objective
from etr.observatory.entropy import bin_names, entropy_change
from etr.observatory.occupancy import (
    OUTSIDE,
    SUCCESS_EDGES,
    WIDTH,
    by_difficulty,
    effective_share,
    occupancy,
    squared_ratio,
)

RATIO, SQUARED = "policy/ratio", "policy/squared_ratio"


def observe(objective: Objective, batch: Batch, old_entropy: Tensor | None = None) -> dict[str, Mean]:
    """What an update did, as sums `[*R]` (by success rate: `[*R, 6]`) that add over micro-batches.

    Keep them apart from the sums of `LossOutput.metrics`, which are those of the last update's own forward pass.
    batch: the prepared rollout batch, or rows of it, with the log-probs of the policy after the update; old_entropy: H
    of the policy before it in each token's state, nats, `[*R, B, T]`; without it the split of the entropy is left out.
    Raises InputError where `etr.policy_loss` does, and for a batch without group statistics.
    """
    denominator = objective.denominator(batch.response_mask)  # the loss itself is not read
    out = policy_loss(objective, batch, denominator, check=False)
    sums = {
        RATIO: out.metrics[RATIO],
        SQUARED: squared_ratio(out),
        **occupancy(batch, out),
        **by_difficulty(batch, out),
    }
    if old_entropy is not None:
        sums |= entropy_change(batch, old_entropy, gradient_coefficient(objective, batch)).metrics()
    return sums


def read(sums: Mapping[str, Mean]) -> dict[str, Tensor]:
    """Added sums as values `[*R]`, one name each (`etr.diagnostics.METRICS`), with the effective sample size."""
    values: dict[str, Tensor] = {}
    for name, mean in sums.items():
        if name in (WIDTH, OUTSIDE):
            names = bin_names(SUCCESS_EDGES)
            values |= {f"{name}/{label}": mean.value[..., i] for i, label in enumerate(names)}
        elif name not in (RATIO, SQUARED):
            values[name] = mean.value
    return values | {"policy/effective_share": effective_share(sums[RATIO], sums[SQUARED])}
