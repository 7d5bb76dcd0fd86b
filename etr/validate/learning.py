"""Learning: the recipe, GRPO and a control of equal width, each at its own best learning rate, on the same seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import Generator, Tensor

from etr import stats
from etr.loss import policy_loss
from etr.recipe import OptimizerSettings, Recipe
from etr.registry import get
from etr.toy.cache import train_all
from etr.toy.config import ToyConfig
from etr.toy.measures import measure
from etr.toy.recorder import History
from etr.toy.rollout import supplies
from etr.validate.base import JUDGED_SEED, TUNING_SEED, Bench, Finding, criterion, not_applicable, scaled, verdict
from etr.validate.batches import stale_answers
from etr.validate.stability import STEP, grpo
from toy_envs import make_model
from toy_envs.model import ExactModel

RATES = (0.06, 0.12, 0.25, 0.5, 1.0)  # of Adam; four updates on each rollout batch
UPDATES = 4
BANDIT, TOKENS = "bandit-spread", "tree-medium"
CONTROL = "grpo, equal width"
MARGIN = 0.05
WHY = (
    "A loss that keeps every law may still not learn, or only at one learning rate. All arms get the same grid of "
    "learning rates, are tuned on other seeds than they are judged by, and are compared seed by seed."
)
LINE = (
    "the learning score (mean score over training; 0: uniform policy, 1: optimum), minus that of tuned GRPO, and of "
    "tuned GRPO with the recipe's mean region width where it has one, must be above −0.05, its interval included"
)
BECAUSE = (
    "GRPO itself loses about 0.03 on the bandit by a learning rate off by a factor of two, and 0.10 by a factor of "
    "four: what costs no more than careless tuning is not ruled out by a toy."
)
FAILING = (
    "it learns clearly worse than {what}, though tuned alike; look at `etr compare` in that environment, where it loses"
)


@criterion(
    title=f"Does it learn a bandit ({BANDIT}) about as fast as GRPO?",
    why=WHY,
    limit=MARGIN,
    line=LINE,
    because=BECAUSE,
    failing=FAILING.format(what="GRPO or its control on a bandit"),
    required=False,
)
def learning_bandit(bench: Bench, limit: float) -> Finding:
    return learning(bench, BANDIT, limit)


@criterion(
    title=f"Does it learn answers of several tokens ({TOKENS}) about as fast as GRPO?",
    why=WHY,
    limit=MARGIN,
    line=LINE,
    because=BECAUSE,
    failing=FAILING.format(what="GRPO or its control on answers of several tokens"),
)
def learning_tokens(bench: Bench, limit: float) -> Finding:
    return learning(bench, TOKENS, limit)


def learning(bench: Bench, env: str, margin: float) -> Finding:
    """Paired differences of learning scores from both controls in one environment; the worse of them decides."""
    model = make_model(env)
    lacks = sorted(bench.recipe.objective.needs - set(supplies(model)))
    if lacks:
        return not_applicable(f"it needs {', '.join(lacks)}, which {env} does not have")
    control, note = equal_width(bench.recipe, model)
    arms = {"recipe": bench.recipe, "grpo": grpo(), **({CONTROL: control} if control else {})}
    scores, details = _tuned_scores(bench, env, model, arms)
    rows = [("control of equal width", note)]
    worst: stats.Interval | None = None
    for name in list(arms)[1:]:
        pair = (scores["recipe"]["learning score"][None], scores[name]["learning score"][None])
        found = stats.paired_difference(*pair, Generator().manual_seed(0))
        rows.append((f"minus {name}", f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"))
        worst = found if worst is None or found.low < worst.low else worst
    assert worst is not None  # GRPO is always there
    text = f"learning score {worst.estimate:+.3f} against the stronger control, over {bench.sizes.judged} seeds"
    return Finding(verdict(worst.low > -margin), text, worst, scaled(worst, -1 / margin), (*rows, *details))


def _tuned_scores(
    bench: Bench, env: str, model: ExactModel, arms: dict[str, Recipe]
) -> tuple[dict[str, dict[str, Tensor]], list[tuple[str, str]]]:
    """Measures of each arm at its best rate on the judged seeds, and what was chosen."""
    cells = [(name, rate) for name in arms for rate in RATES]
    recipes = [_with_rate(arms[name], name, rate) for name, rate in cells]
    tuned = _train(bench, f"tuning on {env}", recipes, model, bench.sizes.tuning, TUNING_SEED)
    learned = [float(measure(history, model)["learning score"].mean()) for history in tuned]
    best: dict[str, float] = {}
    for name in arms:
        of_arm = {rate: learned[i] for i, (arm, rate) in enumerate(cells) if arm == name}
        best[name] = max(of_arm, key=lambda rate: of_arm[rate] if math.isfinite(of_arm[rate]) else -math.inf)
    judged = [_with_rate(arms[name], name, rate) for name, rate in best.items()]
    histories = _train(bench, f"judging on {env}", judged, model, bench.sizes.judged, JUDGED_SEED)
    scores = {name: measure(history, model) for name, history in zip(arms, histories, strict=True)}
    bench.histories[env] = dict(zip(arms, histories, strict=True))
    rows = [
        (f"{name} at learning rate {best[name]:g}", f"learning score {scores[name]['learning score'].mean():.3f}, "
         f"final score {scores[name]['final score'].mean():.3f}")
        for name in arms
    ]  # fmt: skip
    return scores, rows


def _train(
    bench: Bench, label: str, recipes: Sequence[Recipe], model: ExactModel, seeds: int, first: int
) -> list[History]:
    config = ToyConfig(bench.sizes.iterations, seeds=seeds, first_seed=first, metrics_every=2)
    bar = bench.start(label, len(recipes) * config.iterations)
    done = [0] * len(recipes)

    def moved(place: int, step: int) -> None:
        done[place] = step
        bar(sum(done))

    return train_all(recipes, model, config, bench.cache, moved)


def _with_rate(recipe: Recipe, name: str, rate: float) -> Recipe:
    """The recipe under the suite's own optimiser: what is judged is the loss."""
    return dataclasses.replace(recipe, name=f"{name} {rate:g}", optimizer=OptimizerSettings(lr=rate, updates=UPDATES))


def equal_width(recipe: Recipe, model: ExactModel) -> tuple[Recipe | None, str]:
    """GRPO with the recipe's mean region width, measured one update from a rollout; or None and the reason.

    The width is the mean over tokens with A ≠ 0 of sixteen policies' answers.
    """
    stale = stale_answers(recipe, model, 16)
    batch = stale.at(STEP)
    out = policy_loss(recipe.objective, batch, stale.denominator, check=False)
    counts = out.mask & (batch.token_advantages != 0)
    width = float((out.region.high - out.region.low)[counts].double().mean()) if bool(counts.any()) else math.nan
    usual = sum(vars(get("grpo"))[side] for side in ("eps_low", "eps_high"))
    if not math.isfinite(width) or not 0 < width < 2:
        return None, f"none: the recipe's region has a mean width of {width:.3g}, which no symmetric clip range has"
    if math.isclose(width, usual):
        return None, "none: the recipe's region is as wide as GRPO's, which is the control already"
    return Recipe(CONTROL, get("grpo", eps_low=width / 2, eps_high=width / 2)), f"clip range {width / 2:.3f}"
