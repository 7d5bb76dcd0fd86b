"""The gate: what has to be true before a recipe goes to real training, each as one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from etr.errors import InputError
from etr.laws import random_batch
from etr.llm.doctor.clipping import clipping, has_region
from etr.loss import policy_loss
from etr.objective import Objective
from etr.recipe import Recipe
from etr.validate import FILE, Scorecard, default_folder, read_scorecard

WIDE = 10.0  # in log r: a token's probability would have to change 22,000-fold within one batch


@dataclass(frozen=True)
class Verdict:
    """Why a recipe may not pass, what is worth knowing, and the scorecard that was found, with its file."""

    refused: Sequence[str] = field(default_factory=list)
    warnings: Sequence[str] = field(default_factory=list)
    scorecard: Scorecard | None = None
    path: Path | None = None


def examine(recipe: Recipe, scorecard: Path | None) -> Verdict:
    """Hold the recipe against its scorecard (None: where `etr validate` puts it) and against settings without effect.

    Raises InputError for a file that was named and cannot be read.
    """
    path = default_folder(recipe.name) / FILE if scorecard is None else scorecard
    path = path / FILE if path.is_dir() else path
    idle = without_effect(recipe)
    if not path.exists():
        return Verdict([f"there is no scorecard '{path}': run `etr validate` on this recipe, or name its scorecard by "
                        "--scorecard", *idle])  # fmt: skip
    card = read_scorecard(path)
    return Verdict([*evidence(card, recipe, path), *idle], other_versions(card), card, path)


def evidence(card: Scorecard, recipe: Recipe, path: Path) -> list[str]:
    """Why that scorecard is no evidence for this recipe and this code; empty if it is."""
    failed = [f"{recipe.name} failed in '{path}' at {sentence}" for sentence in card.reasons()]
    return [*failed, *(f"'{path}': {sentence}" for sentence in card.mismatches(recipe))]


def other_versions(card: Scorecard) -> list[str]:
    """A sentence for a torch other than the one that it was validated with: the loss may differ in its last bits."""
    then, now = card.versions.get("torch"), torch.__version__
    if then in (None, now):
        return []
    return [f"it was validated with torch {then}, and this is torch {now}; validate again if the last bits matter"]


def without_effect(recipe: Recipe) -> list[str]:
    """Settings under which no ratio can ever leave its region, so that the recipe's own idea does nothing."""
    found = [f"{finding.what}: {finding.mend}" for finding in clipping(recipe) if finding.level == "warning"]
    settings = recipe.optimizer
    for name in ("lr", "max_grad_norm"):
        if getattr(settings, name) == 0:
            found.append(f"with optimizer.{name}=0 the policy never moves; give a positive number")
    objective = recipe.objective
    if has_region(recipe) and never_binds(objective) and not never_binds(type(objective)()):  # some are so by design
        found.append(
            f"the region of {recipe.name} is so wide that no ratio leaves it (bounds beyond e^±{WIDE:g}); give a "
            "narrower one, or an objective without a region"
        )
    return found


def never_binds(objective: Objective) -> bool:
    """Do both bounds lie so far out, for every token of a random batch, that no ratio gets there?"""
    region = policy_loss(objective, random_batch(objective)).region
    return bool((region.high > math.exp(WIDE)).all() and (region.low < math.exp(-WIDE)).all())


def check(verdict: Verdict, force: bool) -> None:
    """Raise InputError with all refusals, unless `force` takes the responsibility for them."""
    if verdict.refused and not force:
        raise InputError("not promoted: " + "; ".join(verdict.refused) + " (--force promotes all the same, on record)")
