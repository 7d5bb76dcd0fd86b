"""Floor 6: pictures. Each function returns a `Figure` that pyplot does not know; `save_figures` writes them."""

from etr.plots.curves import entropy_reward_phase, learning_dashboard, seed_bands
from etr.plots.files import png, save_figures
from etr.plots.forest import comparison_forest
from etr.plots.llm import llm_curves
from etr.plots.regions import region_landscape, width_by_success_rate
from etr.plots.style import caption, objective_color
from etr.plots.surrogates import surrogate_curves

__all__ = [
    "caption",
    "comparison_forest",
    "entropy_reward_phase",
    "learning_dashboard",
    "llm_curves",
    "objective_color",
    "png",
    "region_landscape",
    "save_figures",
    "seed_bands",
    "surrogate_curves",
    "width_by_success_rate",
]
