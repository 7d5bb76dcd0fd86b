"""The pictures of a toy comparison, saved into its run folder."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from etr.plots.curves import entropy_reward_phase, learning_dashboard
from etr.plots.environments import environment_answer
from etr.plots.profiles import performance_profiles
from etr.plots.regions import width_by_success_rate
from etr.toy.compare import Comparison
from etr.toy.recorder import SUCCESS_EDGES

EDGES = torch.cat([torch.zeros(1), SUCCESS_EDGES, torch.ones(1)])


def comparison_figures(result: Comparison) -> dict[str, Figure]:
    """Curves, phase plot and region widths for every environment, and the profiles over all runs, by file name."""
    figures = {}
    for env, histories in result.histories.items():
        curves = {recipe: history.curves for recipe, history in histories.items()}
        steps = next(iter(histories.values())).steps
        figures[f"{env}-curves"] = learning_dashboard(curves, steps, title=env)
        figures[f"{env}-phase"] = entropy_reward_phase(curves)
        figures[f"{env}-answer"] = environment_answer(env, dict(histories))
        bounded = {r: (EDGES, h.width) for r, h in histories.items() if not bool(h.width.isinf().any())}
        if bounded:  # an objective without a region has no width to draw
            figures[f"{env}-width"] = width_by_success_rate(bounded)
    figures["profiles"] = performance_profiles(_learning_scores(result), "learning score", "All runs")
    return figures


def _learning_scores(result: Comparison) -> dict[str, Tensor]:
    """The learning score by recipe, `[environments, seeds]`."""
    scores: dict[str, dict[str, list[float]]] = {}
    for row in result.seeds:
        scores.setdefault(row["recipe"], {}).setdefault(row["env"], []).append(row["learning_score"])
    return {recipe: torch.tensor(list(by_env.values())) for recipe, by_env in scores.items()}
