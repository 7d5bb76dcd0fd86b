"""Floor 6: pictures. Each function returns a `Figure` that pyplot does not know; `save_figures` writes them."""

from etr.plots.alarms import alarm_curves
from etr.plots.card import Learning, objective_card
from etr.plots.curves import entropy_reward_phase, learning_dashboard, seed_bands
from etr.plots.environments import environment_answer
from etr.plots.files import png, save_figures
from etr.plots.forest import comparison_forest
from etr.plots.llm import llm_curves
from etr.plots.observatory import entropy_budget, prediction_scatter, width_and_occupancy
from etr.plots.regions import region_landscape, width_by_success_rate
from etr.plots.style import caption, objective_color
from etr.plots.surrogates import surrogate_curves

__all__ = [
    "Learning",
    "alarm_curves",
    "caption",
    "comparison_forest",
    "entropy_budget",
    "entropy_reward_phase",
    "environment_answer",
    "learning_dashboard",
    "llm_curves",
    "objective_card",
    "objective_color",
    "png",
    "prediction_scatter",
    "region_landscape",
    "save_figures",
    "seed_bands",
    "surrogate_curves",
    "width_and_occupancy",
    "width_by_success_rate",
]
