"""The picture of a replay: gradient coefficient by log ratio, recorded and replayed on top of each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from etr.plots.style import INK, finish, new_figure, objective_color, styled
from etr.recorded import Recorded, Replay

MOST = 4000  # tokens drawn; further ones would only lie on these
MARKS = {"toy": "+", "llm": "x", "verl": "1", "trl": "2"}


@styled
def replay_figure(recorded: Recorded, replays: Mapping[str, Replay]) -> Figure:
    """c = −gradient / aggregation weight by log π/π_old of each kept token; replays: path -> what it computed."""
    figure = new_figure(6.8, 4.2)
    axes = figure.subplots()
    batch, kept = recorded.batch, recorded.batch.response_mask
    tokens = int(kept.sum())
    every = -(-tokens // MOST)
    shown = kept & ((kept.flatten().cumsum(0) - 1) % every == 0).reshape(kept.shape)
    log_ratio = (batch.log_probs - batch.old_log_probs)[shown].double()
    weight = weights(recorded)
    ring: dict[str, Any] = {"s": 60, "facecolors": "none", "edgecolors": INK, "linewidths": 0.9}
    axes.scatter(log_ratio, _coefficient(recorded.gradient, weight, shown), label=f"recorded ({recorded.host})", **ring)
    for number, (path, found) in enumerate(replays.items()):
        color = objective_color(("etr", "grpo", "dapo", "dr_grpo")[number % 4])
        values = _coefficient(found.gradient, weight, shown)
        axes.scatter(log_ratio, values, label=path, marker=MARKS.get(path, "."), color=color, s=36, linewidths=1.1)
    axes.axvline(0, color=INK, lw=0.8)
    axes.set(title=f"{recorded.recipe.name}: one recorded update, replayed", xlabel="log ratio of the token, nats")
    axes.set(ylabel="gradient coefficient c")
    axes.legend(loc="best", frameon=False)
    which = "All" if every == 1 else f"One in {every} of the"
    note = f"{which} {tokens} tokens of {kept.shape[0]} responses. A mark outside its ring is a disagreement."
    return finish(figure, f"{note} c is minus the gradient over the aggregation weight; regularizers are in it.")


def weights(recorded: Recorded) -> Tensor:
    """What the aggregation multiplies each token with, `[B, T]`, summed over the parts as the loss is."""
    objective, mask = recorded.recipe.objective, recorded.batch.response_mask
    per_token = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    total = [objective.aggregate(per_token[rows], mask[rows], recorded.denominator) for rows in recorded.parts]
    return torch.autograd.grad(sum(total[1:], total[0]), per_token)[0]


def _coefficient(gradient: Tensor, weight: Tensor, shown: Tensor) -> Tensor:
    of_shown = weight[shown]
    return torch.where(of_shown > 0, -gradient.double()[shown] / of_shown, 0.0)
