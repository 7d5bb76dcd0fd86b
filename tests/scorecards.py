"""Scorecards for tests: what `etr validate` would write, without the minutes that it takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from etr.provenance import hash_of, loss_fields, loss_sources
from etr.recipe import Recipe
from etr.validate import CRITERIA, ORDER, SUITE, Scorecard, default_folder, write_scorecard


def criteria(**outcomes: str) -> tuple[dict[str, Any], ...]:
    """All criteria of the suite, passed but for the outcomes given by name (`_` for `-`)."""
    changed = {name.replace("_", "-"): outcome for name, outcome in outcomes.items()}
    return tuple(
        {
            "name": name, "outcome": changed.get(name, "pass"), "required": CRITERIA[name].required,
            "text": "1 of 15 broken", "value": 1.0, "low": None, "high": None, "failing": "it breaks a law",
            "details": [],
        }
        for name in ORDER
    )  # fmt: skip


def scorecard(recipe: Recipe, **changes: Any) -> Scorecard:
    """A card of this recipe and of the code as it is, passed unless `changes` say otherwise."""
    sources, fields = loss_sources(recipe), loss_fields(recipe)
    card = Scorecard(
        recipe=recipe.as_dict(), name=recipe.name, criteria=criteria(), loss_hash=hash_of(sources, fields),
        sources=sources, fields=fields, suite=SUITE, quick=False, versions={"torch": torch.__version__}, seeds={},
        made={"date": "2026-01-01", "seconds": 1.0},
    )  # fmt: skip
    return dataclasses.replace(card, **changes)


def put(recipe: Recipe, **changes: Any) -> Path:
    """The card where `etr promote` looks for it, below the current folder."""
    return write_scorecard(default_folder(recipe.name), scorecard(recipe, **changes))
