"""Floor 2: the gradient of any objective in the four parts of the Unified Policy Gradient Estimator (2509.04419).

    ∇J = Σ_t mask · (1/π_ref) · A · ∇π,   ∇π = π·∇log π,   so   c = mask · A · π/π_ref

mask: which tokens have a gradient; π_ref: the reference policy, the denominator; A: the advantage that the objective
uses; π: the likelihood whose gradient is taken. SFT and REINFORCE have π_ref = π, PPO and GRPO the old policy, offline
demonstrations 1. For every other objective π_ref is the policy that its coefficient c implies, π·A/c: what it
divides by in effect. Where c opposes A, or A = 0 and c is not, no reference policy gives c; such tokens are not
`defined`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch
from etr.loss import gradient_coefficient, prepared
from etr.objective import Objective

CLOSE = 1e-6  # relative, of a policy that counts as a known one


class FourParts(NamedTuple):
    """The parts of c, `[*R, B, T]`; 1 where there is nothing to divide by.

    mask: bool; denominator: π_ref of the token; advantage: A; likelihood: π of the token; defined: bool, False where no
    π_ref gives c.
    """

    mask: Tensor
    denominator: Tensor
    advantage: Tensor
    likelihood: Tensor
    defined: Tensor

    def coefficient(self) -> Tensor:
        """mask · A · π/π_ref."""
        return torch.where(self.mask, self.advantage * self.likelihood / self.denominator, 0.0)


def four_parts(objective: Objective, batch: Batch) -> FourParts:
    """The parts of `gradient_coefficient(objective, batch)`. The batch is a whole one, prepared or not."""
    batch = prepared(objective, batch)
    coefficient, clean = gradient_coefficient(objective, batch).detach(), batch.clean()  # read, not trained
    likelihood = clean.log_probs.detach().exp()  # read, not trained
    advantage = clean.token_advantages.expand(likelihood.shape)
    defined = (coefficient * advantage > 0) | (coefficient == 0)
    mask = clean.response_mask & defined & (coefficient != 0)
    denominator = torch.where(mask, likelihood * advantage / torch.where(mask, coefficient, 1.0), 1.0)
    return FourParts(mask, denominator, advantage, likelihood, defined | ~clean.response_mask)


def reference(objective: Objective, batch: Batch) -> str:
    """Which policy the denominator is, on the tokens that have a gradient: "π", "π_old", "π_ref", or what it does."""
    parts, clean = four_parts(objective, prepared(objective, batch)), batch.clean()
    if not bool(parts.mask.any()):
        return "none"
    known = {"π": clean.log_probs, "π_old": clean.old_log_probs, "π_ref": clean.ref_log_probs}
    for name, log_probs in known.items():
        if log_probs is not None and _equal(parts.denominator, log_probs.exp(), parts.mask):
            return name
    if objective.scope == "row":
        return "by answer"
    weight = (parts.likelihood / parts.denominator)[parts.mask]
    return f"π/w, w {float(weight.min()):.2g} to {float(weight.max()):.2g}"


def table(objectives: Iterable[Objective], batch: Batch) -> str:
    """One line for each objective: the share of tokens without gradient, its reference policy, the spread of A."""
    rows = [("objective", "mask = 0", "π_ref", "|A|", "undefined")]
    for objective in objectives:
        parts, kept = four_parts(objective, batch), batch.response_mask
        size = parts.advantage.abs()[kept]
        rows.append(
            (
                objective.name,
                f"{float((~parts.mask)[kept].double().mean()):.0%}",
                reference(objective, batch),
                f"{float(size.min()):.2g} to {float(size.max()):.2g}",
                f"{float((~parts.defined)[kept].double().mean()):.0%}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _equal(a: Tensor, b: Tensor, mask: Tensor) -> bool:
    return bool(torch.where(mask, (a - b).abs() <= CLOSE * b.abs(), True).all())
