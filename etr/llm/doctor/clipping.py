"""What clipping can do in a recipe: at how many of its updates a ratio can leave its region at all."""

from __future__ import annotations

import torch

from etr.laws import random_batch
from etr.llm.doctor.findings import Finding
from etr.loss import policy_loss
from etr.recipe import Recipe


def has_region(recipe: Recipe) -> bool:
    """Whether the objective bounds the ratio of any token."""
    region = policy_loss(recipe.objective, random_batch(recipe.objective)).region
    return bool(torch.isfinite(region.high).any() | (region.low > 0).any())


def clipping(recipe: Recipe) -> list[Finding]:
    """Findings on the number of updates. The first update of a batch starts at the policy that sampled it: r = 1."""
    updates, name = recipe.optimizer.updates, recipe.name
    if not has_region(recipe):
        return [Finding("note", f"{name} has no trust region, so nothing is clipped at any number of updates")]
    if updates == 1:
        text = (
            f"with optimizer.updates=1 the ratio is always 1: nothing is ever clipped, and {name} takes the step that "
            "any objective takes with its advantages and its mean over tokens"
        )
        return [Finding("warning", text, "--set optimizer.updates=2 or more")]
    text = (
        f"with optimizer.updates={updates} the first update of a batch cannot clip (its ratio is 1); the other "
        f"{updates - 1} of {updates} can"
    )
    return [Finding("note", text)]
