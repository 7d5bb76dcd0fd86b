"""Section 8: bias and spread of the KL estimators k1, k2, k3 (Schulman's note, 2020), q = N(0, 1), p = N(μ, 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from etr.regularizers import kl_policy_to_ref
from etr.reproduce.base import Z95, Measured, Statement, Target, exactly

MEANS = (0.1, 1.0)
SAMPLES, BLOCKS = 4_000_000, 40


def estimates(x: Tensor, mean: float) -> Tensor:
    """k1, k2, k3 of KL(q ‖ p) at samples x of q, as shares of the true μ²/2: `[3, *x]`."""
    log_q, log_p = -(x**2) / 2, -((x - mean) ** 2) / 2  # the common constant cancels
    return torch.stack([kl_policy_to_ref(log_q, log_p, kind) for kind in ("k1", "k2", "k3")]) / (mean**2 / 2)


def by_integration() -> list[Measured]:
    """Bias and standard deviation of each, for both means; a sum over a fine grid, exact to rounding."""
    x = torch.linspace(-14, 14, 28_001, dtype=torch.float64)
    weight = (-(x**2) / 2).exp()
    weight = weight / weight.sum()
    found: list[float] = []
    for mean in MEANS:
        values = estimates(x, mean)
        average = (weight * values).sum(-1)
        spread = (weight * (values - average.unsqueeze(-1)) ** 2).sum(-1).sqrt()
        found += [*(average - 1).tolist(), *spread.tolist()]
    return exactly(*found)


def sampled() -> list[Measured]:
    """The same from 4 million samples; intervals from the spread over 40 blocks of them."""
    rng = torch.Generator().manual_seed(0)
    found: list[Measured] = []
    x = torch.randn(BLOCKS, SAMPLES // BLOCKS, generator=rng, dtype=torch.float64)
    for mean in MEANS:
        values = torch.stack([estimates(block, mean) for block in x], 1)  # [3, blocks, samples]
        for blocks in (values.mean(-1) - 1, values.std(-1)):
            errors = Z95 * blocks.std(-1) / BLOCKS**0.5
            found += [Measured(*pair) for pair in zip(blocks.mean(-1).tolist(), errors.tolist(), strict=True)]
    return found


# Each number in the order of the functions above: the note's table, its tolerance, an earlier sample of 4 million, its
# tolerance. A sampled bias is uncertain by 1.96 σ/√n (n = 10⁷, from memory, for the note), a table by half a digit.
TABLE = {
    "μ = .1: bias of k1": (0.0, 0.0125, 0.0, 0.02),
    "μ = .1: bias of k2": (0.002, 0.001, 0.0019, 0.0014),
    "μ = .1: bias of k3": (0.0, 0.001, 0.0, 0.0014),
    "μ = .1: std of k1": (20.0, 0.5, 19.995, 0.014),
    "μ = .1: std of k2": (1.42, 0.005, 1.419, 0.0027),
    "μ = .1: std of k3": (1.42, 0.005, 1.418, 0.0027),
    "μ = 1: bias of k1": (0.0, 0.0013, 0.0, 0.002),
    "μ = 1: bias of k2": (0.25, 0.005, 0.2484, 0.0017),
    "μ = 1: bias of k3": (0.0, 0.0012, 0.0, 0.0017),
    "μ = 1: std of k1": (2.0, 0.5, 2.0, 0.0015),
    "μ = 1: std of k2": (1.73, 0.005, 1.733, 0.0035),
    "μ = 1: std of k3": (1.7, 0.05, 1.702, 0.006),
}

KL_ESTIMATORS = (
    Statement(
        "kl-table", 8, "Bias and standard deviation of k1, k2, k3 as shares of the true KL, μ = .1 and 1.",
        "Schulman, joschu.net 2020, from memory", "reconstructed",
        tuple(Target(name, row[0], row[1]) for name, row in TABLE.items()), by_integration,
        note="By integration, with the library's own estimators. The exact bias of k2 is μ²/4: .0025 and .25.",
    ),
    Statement(
        "kl-sampled", 8, "The same by sampling, 4 million draws.", "simulation of this project", "reconstructed",
        tuple(Target(name, row[2], row[3]) for name, row in TABLE.items()), sampled, quick=False,
    ),
)  # fmt: skip
