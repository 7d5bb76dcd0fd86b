"""Settings of a toy run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from etr.errors import InputError


@dataclass(frozen=True)
class ToyConfig:
    """Settings of a toy run, shared by all recipes of a comparison."""

    # Rollout batches to train on.
    iterations: int = 100
    # Responses sampled for each prompt, G.
    group_size: int = 16
    # Independent runs; all are trained at once.
    seeds: int = 64
    # Number of the first seed.
    first_seed: int = 0
    # Iterations between measurements; 0 for about a hundred of them in a run.
    metrics_every: int = 0
    # Policy: prefix (a row of logits for every prefix), prompt, shared-bias or linear.
    policy: str = "prefix"
    # Measure also where entropy went, the effective sample size and more, at some cost.
    observe: bool = False
    # Precision of the tables. Adam turns the rounding noise of float32 into small steps.
    dtype: Literal["float64", "float32"] = "float64"
    # Compile the updates: some seconds at the start, several times faster after it. Needs a C++ compiler.
    compile: bool = False

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for name, least in (("iterations", 1), ("group_size", 2), ("seeds", 1), ("metrics_every", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value}; give at least {least}, a whole number")

    def measured(self, step: int) -> bool:
        """Is this iteration measured? The last one always is."""
        return step % (self.metrics_every or max(1, self.iterations // 100)) == 0 or step == self.iterations
