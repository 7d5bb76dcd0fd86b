"""The picture on every objective's card: bounds and gradient coefficient, from the code itself."""

from __future__ import annotations

from pathlib import Path

import etr
from etr.plots import objective_card


def draw_cards(folder: Path) -> None:
    """One PNG per registered objective."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in etr.list_objectives():
        objective_card(etr.get(name)).savefig(folder / f"{name}.png", dpi=110)
