"""Floor 4: one optimiser step's gradient. The toy trainer and the LLM trainer call this and nothing else, so that a loss
validated on a bandit is the loss that trains the LLM, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import Tensor

from etr.batch import Batch, LossOutput
from etr.errors import InputError
from etr.loss import policy_loss
from etr.objective import Objective

Forward = Callable[[slice], Tensor]
Observe = Callable[[Batch, LossOutput], None]


def add_gradients(
    objective: Objective,
    batch: Batch,
    forward: Forward,
    denominator: Tensor,
    micro_batches: int = 1,
    observe: Observe | None = None,
) -> None:
    """Add the gradient of the loss of a whole rollout batch to the parameters' `.grad`, one micro-batch at a time.

    batch: prepared, `[*R, B, T]`; forward: rows of the batch to their current log-probs `[*R, b, T]`, with graph;
    denominator: `objective.denominator` of the whole batch, so that any split gives the same gradient;
    observe: sees every micro-batch and its loss (for metrics).
    Raises InputError for more micro-batches than responses.
    """
    size = batch.response_mask.shape[-2]
    if not 1 <= micro_batches <= size:
        raise InputError(f"micro_batches is {micro_batches} but a batch has {size} responses; give 1 to {size}")
    bounds = [size * i // micro_batches for i in range(micro_batches + 1)]
    for start, stop in zip(bounds, bounds[1:], strict=False):
        rows = slice(start, stop)
        part = dataclasses.replace(batch.rows(rows), log_probs=forward(rows))
        out = policy_loss(objective, part, denominator, check=False)
        out.loss.sum().backward()  # runs do not mix, so the gradient of the sum is each run's own
        if observe is not None:
            observe(part, out)
