"""Which reading of ETR, if any, keeps more entropy and reaches more reward than GRPO? Tuned equally, with controls.

    python docs/results/which_etr.py

Every arm gets the same tuning budget in every environment (TUNING_SEEDS seeds of each cell of GRID, chosen by learning
score), and is then run on SEEDS other seeds at its own best cell. Runs are cached, so a stopped script goes on where it
was. Writes which-etr.json; which_etr_page.py makes the page and the pictures of it.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from etr import stats
from etr.environment import environment
from etr.files import atomic_write, to_json
from etr.recipe import Recipe, load_recipe
from etr.toy.cache import Cache, train_all
from etr.toy.config import ToyConfig
from etr.toy.measures import defined, entropy_at, measure
from etr.toy.recorder import History
from toy_envs import make_model
from toy_envs.model import ExactModel

HERE = Path(__file__).parent
SEEDS, TUNING_SEEDS = 256, 24
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "grpo, eps 0.3": ("grpo", {"eps_low": 0.3, "eps_high": 0.3}),
    "no clip": ("grpo", {"eps_low": 1.0, "eps_high": 1e6}),
    "clip-higher": ("grpo", {"eps_high": 0.28}),
    "grpo_wide": ("grpo_wide", {}),
    "etr": ("etr", {}),
    "etr, equal budget": ("etr", {"normalize_budget": True}),
    "etr, micro only": ("etr", {"macro": 0.0}),
    "etr, macro only": ("etr", {"micro": 0.0}),
    "etr_implicit": ("etr_implicit", {}),
    "etr_proportional": ("etr_proportional", {}),
    "etr_surprise": ("etr_surprise", {}),
}
ENVS = (
    "bandit-fixed-gap",
    "bandit-near-tie",
    "bandit-deceptive",
    "bandit-multi-optimum",
    "bandit-spread",
    "noisy-light",
    "random-half",
    "mod-m5",
    "two-stage-medium",
    "key-chain-k2",
    "copy-easy",
    "tree-easy",
    "multi-reward-even",
    "multi-mode-easy",
)
GRID = [{"optimizer.lr": lr, "optimizer.updates": updates} for lr, updates in product((0.1, 0.3, 1.0), (4, 8))]
CONFIG = ToyConfig(iterations=60, metrics_every=2)
SHARES = (0.5, 0.75, 0.9)  # of GRPO's final score: the levels at which entropies are compared
# The sketch that the question began with: plain SGD, 8 updates, steps of a prompt's own mean loss.
SKETCH_ENV, SKETCH_STEPS = "noisy-light", (0.5, 2.0)


def recipe_of(arm: str, cell: dict[str, Any]) -> Recipe:
    name, fields = ARMS[arm]
    return load_recipe(name, {**fields, **cell})


def run(arms_and_cells: list[tuple[str, dict[str, Any]]], model: ExactModel, seeds: int, first: int) -> list[History]:
    config = ToyConfig(CONFIG.iterations, CONFIG.group_size, seeds, first, CONFIG.metrics_every)
    return train_all([recipe_of(arm, cell) for arm, cell in arms_and_cells], model, config, Cache())


def tuning(model: ExactModel) -> dict[str, list[dict[str, Any]]]:
    """Each arm's cells with learning score and entropy at the last level; not on the seeds of the comparison."""
    jobs = [(arm, cell) for arm in ARMS for cell in GRID]
    histories = dict(zip(range(len(jobs)), run(jobs, model, TUNING_SEEDS, 100_000), strict=True))
    measures = {i: measure(history, model) for i, history in histories.items()}
    best = max(float(stats.iqm(measures[i]["final score"])) for i, (arm, _) in enumerate(jobs) if arm == "grpo")
    points: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for i, (arm, cell) in enumerate(jobs):
        score = model.score(histories[i].curves["reward"])
        at = entropy_at(score, histories[i].curves["entropy"], max(0.02, SHARES[-1] * best))
        reached = defined(at)
        entropy = float(stats.iqm(reached)) if len(reached) > 0.9 * len(at) else None
        learning = float(stats.iqm(measures[i]["learning score"]))
        points[arm].append({"cell": cell, "learning score": learning, "entropy": entropy})
    return points


def interval(values: Tensor) -> dict[str, Any]:
    """IQM with its interval, over the seeds that have a value."""
    kept = defined(values)
    if len(kept) < 3:
        return {"iqm": None, "low": None, "high": None, "n": len(kept)}
    found = stats.stratified_bootstrap(kept[None], stats.pooled_iqm, Generator().manual_seed(0))
    return {"iqm": found.estimate, "low": found.low, "high": found.high, "n": len(kept)}


def difference(ours: Tensor, theirs: Tensor) -> dict[str, Any]:
    """Mean paired difference on common random numbers, over the seeds that have both values; p by sign flips."""
    both = ~(ours.isnan() | theirs.isnan())
    x, y = ours[both][None], theirs[both][None]
    if x.shape[1] < 3:
        return {"mean": None, "low": None, "high": None, "p": None, "n": x.shape[1]}
    found = stats.paired_difference(x, y, Generator().manual_seed(0))
    p = stats.sign_flip_p_value(x, y, Generator().manual_seed(0), samples=19_999)
    return {"mean": found.estimate, "low": found.low, "high": found.high, "p": p, "n": x.shape[1]}


def compare(histories: dict[str, History], model: ExactModel) -> dict[str, Any]:
    """Measures of each arm, paired differences from GRPO, and the mean path in the plane of entropy and score."""
    scores = {arm: model.score(h.curves["reward"]) for arm, h in histories.items()}
    measures = {arm: measure(h, model) for arm, h in histories.items()}
    final = float(stats.iqm(measures["grpo"]["final score"]))
    for arm, history in histories.items():
        for share in SHARES:
            level = share * final
            at = (
                entropy_at(scores[arm], history.curves["entropy"], level)
                if level > 0.02
                else scores[arm][:, 0] * torch.nan
            )
            measures[arm][f"entropy at {share:.0%} of grpo's score"] = at
        del measures[arm]["matched entropy"]
    rows = {
        arm: {
            what: {**interval(values), "minus grpo": difference(values, measures["grpo"][what])}
            for what, values in found.items()
        }
        for arm, found in measures.items()
    }
    path = {
        arm: {"score": scores[arm].mean(0).tolist(), "entropy": h.curves["entropy"].mean(0).tolist()}
        for arm, h in histories.items()
    }
    return {"arms": rows, "path": path}


def save(results: dict[str, Any]) -> None:
    settings = {"seeds": SEEDS, "tuning seeds": TUNING_SEEDS, "grid": GRID, "arms": ARMS, "levels": SHARES}
    settings |= {"iterations": CONFIG.iterations, "sketch": [SKETCH_ENV, *SKETCH_STEPS]}
    text = to_json(rounded({"settings": settings, **results, "environment": environment()}))
    atomic_write(HERE / "which-etr.json", text + "\n")


def rounded(value: Any) -> Any:
    """Four digits say enough, and make the file half as long."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {"environments": {}, "sketch": {}}
    for env in ENVS:
        model = make_model(env)
        points = tuning(model)
        best = {arm: max(rows, key=lambda row: row["learning score"])["cell"] for arm, rows in points.items()}
        histories = dict(zip(ARMS, run(list(best.items()), model, SEEDS, 0), strict=True))
        same = dict(zip(ARMS, run([(arm, best["grpo"]) for arm in ARMS], model, SEEDS, 0), strict=True))
        found = {"cells": best, "tuning": points, "tuned": compare(histories, model), "same cell": compare(same, model)}
        results["environments"][env] = found
        save(results)
        print(env, best["grpo"], flush=True)
    model = make_model(SKETCH_ENV)
    for step in SKETCH_STEPS:
        cell = {"optimizer.method": "sgd", "optimizer.lr": step * model.prompts, "optimizer.updates": 8}
        histories = dict(zip(ARMS, run([(arm, cell) for arm in ARMS], model, SEEDS, 0), strict=True))
        results["sketch"][str(step)] = compare(histories, model)
        save(results)
        print("sketch", step, flush=True)


if __name__ == "__main__":
    main()
