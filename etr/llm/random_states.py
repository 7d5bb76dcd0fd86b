"""The states of all global random generators as plain values and tensors.

A run of `etr train` draws from (seed, step) alone; these are for what a reward or a model of your own may draw.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Start all generators from a number: a new run must not depend on what its process drew before."""
    random.seed(number)
    np.random.seed(number % 2**32)
    torch.manual_seed(number)


def read() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators, the GPUs' included."""
    name, words, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(name), [int(word) for word in words], *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def write(states: dict[str, Any]) -> None:
    """Put the generators into these states; GPUs that are not here any more are left out."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"].cpu())
    for device, state in zip(range(torch.cuda.device_count()), states["cuda"], strict=False):
        torch.cuda.set_rng_state(state.cpu(), device)
