"""The picture of `etr show --png`: a short training on a bandit, and what the objective does to single answers."""

from __future__ import annotations

import io
import math
from pathlib import Path

from etr.recipe import Recipe

ENVIRONMENTS = ("bandit-spread", "tree-medium")  # the second for samplers, which need more than one token
SEEDS, ITERATIONS = 16, 60


def draw_card(recipe: Recipe, path: Path) -> None:
    """Write the card of a recipe's objective as a PNG. Raises InputError as training and writing do."""
    from etr.files import atomic_write
    from etr.plots import Learning, objective_card  # drawing takes a second to import
    from etr.toy.config import ToyConfig
    from etr.toy.inputs import supplies
    from etr.toy.train import train
    from toy_envs import make_model

    fits = [e for e in ENVIRONMENTS if recipe.objective.needs <= set(supplies(make_model(e)))]
    env = (fits or ENVIRONMENTS)[0]
    model = make_model(env)
    history = train(recipe, model, ToyConfig(iterations=ITERATIONS, seeds=SEEDS))
    share = history.curves["entropy"] / math.log(model.vocab_size)
    caption = f"Right: {env}, median and middle half of {SEEDS} seeds."
    learning = Learning(history.steps, history.curves["reward"], share)
    buffer = io.BytesIO()
    objective_card(recipe.objective, learning, caption).savefig(buffer, format="png", dpi=130)
    atomic_write(path, buffer.getvalue())
