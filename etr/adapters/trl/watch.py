"""Looks at what TRL makes of the loss: metrics as exact means, and whether anything scales the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from etr import diagnostics
from etr.batch import Batch, LossOutput, Mean
from etr.errors import InputError
from etr.objective import Objective


class Metrics:
    """Sums over the micro-batches of an optimiser step, divided once, over all processes."""

    def __init__(self) -> None:
        self._sums: dict[str, Mean] = {}

    def add(self, objective: Objective, batch: Batch, out: LossOutput, entropy: Tensor) -> None:
        """Those of one micro-batch."""
        found = {**out.metrics, **diagnostics.clipped(objective, batch), "entropy": Mean.of(entropy.detach(), out.mask)}
        for name, mean in found.items():
            self._sums[name] = self._sums[name] + mean if name in self._sums else mean

    def take(self, accelerator: Any) -> dict[str, float]:
        """The means so far, under etr/ but for TRL's own `entropy`; the next sums start at 0."""
        sums, self._sums = self._sums, {}
        pairs = torch.stack([torch.stack((mean.sum, mean.count)) for mean in sums.values()]).float()
        totals = accelerator.reduce(pairs, reduction="sum").tolist()
        means = {name: total / count for name, (total, count) in zip(sums, totals, strict=True) if count}
        return {name if name == "entropy" else f"etr/{name}": value for name, value in means.items()}


class Scale:
    """Refuses to go on when something between our loss and the gradient multiplies it.

    Who divides by the accumulation steps (TRL, transformers, accelerate, an engine below) changed several times from
    version to version, always without an error. The gradient that reaches the loss itself shows the factor.
    """

    def __init__(self, micro_batches: int) -> None:
        self._left = micro_batches  # to look at: those of the first optimiser step
        self._seen: list[Tensor] = []
        self._expected = 1.0

    def watched(self, loss: Tensor, accelerator: Any) -> Tensor:
        """The same loss; the gradient that reaches it is looked at by `check`."""
        if self._left and loss.requires_grad:
            scaler = getattr(accelerator, "scaler", None)  # float16 takes its own factor out again before the step
            self._expected = 1.0 if scaler is None else float(scaler.get_scale())
            loss.register_hook(self._seen.append)
        return loss

    def check(self) -> None:
        """After the backward pass of a micro-batch. Raises InputError."""
        if not self._seen:
            return
        factor = float(self._seen.pop()) / self._expected
        self._left -= 1
        if factor != 1.0:
            raise InputError(
                f"this combination of TRL, transformers and accelerate multiplies the loss by {factor:g}, so the "
                "gradient is not the recipe's; install versions that docs/hosts.md lists"
            )
