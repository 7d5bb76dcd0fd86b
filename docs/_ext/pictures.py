"""The picture on every objective's card: value and gradient coefficient over the ratio, from the code itself."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import etr
from etr.objective import Objective
from etr.plots import surrogate_curves

POINTS, OLD = 281, -2.0  # log π_old is an arbitrary number; only A·log π depends on it, and only by its level


def draw_cards(folder: Path) -> None:
    """One PNG per registered objective."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in etr.list_objectives():
        surrogate_curves({name: curves(etr.get(name))}).savefig(folder / f"{name}.png", dpi=110)


def curves(objective: Objective) -> dict[str, Tensor]:
    """What `surrogate_curves` draws, for one token of a group with success rate ½."""
    ratio = torch.linspace(0.4, 1.8, POINTS, dtype=torch.float64)
    half = torch.full_like(ratio, 0.5)
    found = {"ratio": ratio}
    for sign, advantage in (("pos", 1.0), ("neg", -1.0)):
        batch = etr.Batch(
            log_probs=OLD + ratio.log()[:, None],
            old_log_probs=torch.full((POINTS, 1), OLD, dtype=torch.float64),
            response_mask=torch.ones(POINTS, 1, dtype=torch.bool),
            advantages=torch.full_like(ratio, advantage),
            group=etr.GroupStats(mean=half, var=half**2, size=torch.full_like(ratio, 2.0)),
        )
        found[f"value_{sign}"] = etr.policy_loss(objective, batch).per_token.squeeze(-1)
        found[f"coef_{sign}"] = etr.gradient_coefficient(objective, batch).squeeze(-1)
    return found
