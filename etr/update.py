"""Floor 4: the gradient of one optimiser step, one micro-batch at a time, for parameters of any kind.

Like the toy trainer's update it is `policy_loss` with the denominator of the whole batch, and nothing else: a loss that
was validated on a bandit is the loss that trains the LLM, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from etr.batch import Batch, LossOutput
from etr.errors import InputError
from etr.loss import policy_loss
from etr.objective import Objective

Forward = Callable[[slice], Mapping[str, Tensor]]
Observe = Callable[[Batch, LossOutput], None]


def split(size: int, parts: int) -> list[slice]:
    """`size` rows cut into `parts` micro-batches of nearly equal size; InputError when there are fewer rows than parts.

    >>> split(5, 2)
    [slice(0, 2, None), slice(2, 5, None)]
    """
    if not 1 <= parts <= size:
        raise InputError(f"optimizer.micro_batches is {parts} but a batch has {size} responses; give 1 to {size}")
    bounds = [size * i // parts for i in range(parts + 1)]
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def check_parts(objective: Objective, parts: Sequence[slice], group_size: int) -> None:
    """Raise InputError when micro-batches cut what the objective compares: a group, or the whole batch."""
    cut = objective.undivided == "batch" and len(parts) > 1
    if objective.undivided == "group":
        cut = any(part.start % group_size or part.stop % group_size for part in parts)
    if cut:
        raise InputError(
            f"objective '{objective.name}' looks at a whole {objective.undivided} at a time, but micro-batches cut it; "
            "give fewer (optimizer.micro_batches) or larger ones (micro_batch_tokens)"
        )


def micro_batch(batch: Batch, rows: slice, current: Mapping[str, Tensor]) -> Batch:
    """Those rows of a prepared batch, with the current policy's columns, such as log_probs `[*R, b, T]`."""
    return dataclasses.replace(batch.rows(rows), **dict[str, Any](current))


def add_gradients(
    objective: Objective,
    batch: Batch,
    forward: Forward,
    denominator: Tensor,
    parts: Sequence[slice],
    observe: Observe | None = None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """Add the gradient of the loss of a whole rollout batch to the parameters' `.grad`, one micro-batch at a time.

    Returns that loss, the sum over the parts, `[*R]`.

    batch: prepared, `[*R, B, T]`; forward: rows of the batch to the current policy's columns of them, with graph:
    log_probs `[*R, b, T]` and what else the objective needs of it; denominator: `objective.denominator` of the whole
    batch, so that any split gives the same gradient; parts: the rows of each micro-batch; observe: sees every
    micro-batch and its loss (for metrics); scale: a factor of the gradient alone, for trainers whose ranks average.
    """
    total = torch.zeros_like(denominator)
    for rows in parts:
        part = micro_batch(batch, rows, forward(rows))
        out = policy_loss(objective, part, denominator, check=False)
        total = total + out.loss.detach()
        (scale * out.loss.sum()).backward()  # runs do not mix, so the gradient of the sum is each run's own
        if observe is not None:
            observe(part, out)
    return total
