"""`etr toy` and `etr compare`: recipes on toy environments, hundreds of seeds at once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import OmitArgPrefixes, arg

from etr.cli.options import choose_out, interval, print_table, progress_bar, recipe_with, show_report
from etr.runs import RunFolder
from etr.toy.compare import MEASURES, Comparison, compare, curve_rows
from etr.toy.train import ToyConfig

Set = Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE ...")]


def toy(
    recipe: str = "etr",
    env: str = "bandit-spread",
    set_: Set = (),
    config: OmitArgPrefixes[ToyConfig] = ToyConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train one recipe on one toy environment, all seeds at once, with exact reward, entropy and KL.

    Example: etr toy --recipe etr --env tree-medium --set micro=0.3 optimizer.lr=0.05

    Args:
        recipe: An objective's name, a .yaml file or module:Class.
        env: Environment: bandit-spread, bandit-fixed-gap, tree-medium, ... (a wrong name lists them all).
        set_: Fields of the recipe to change, for example micro=0.3 optimizer.updates=8.
        config: Settings of the run.
        out: Folder for the results; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
    """
    run(f"toy-{Path(recipe).stem}", (recipe,), (env,), set_, config, out, overwrite)


def compare_command(
    recipes: tuple[str, ...] = ("etr", "grpo", "grpo_wide"),
    envs: tuple[str, ...] = ("bandit-spread", "tree-medium"),
    set_: Set = (),
    config: OmitArgPrefixes[ToyConfig] = ToyConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Compare recipes on the same seeds: interquartile means, 95 % intervals, probability of improvement.

    Example: etr compare --recipes etr grpo dapo --envs bandit-near-tie tree-hard --seeds 128

    Args:
        recipes: Objectives by name, .yaml files or module:Class; the first is compared with each of the others.
        envs: Toy environments.
        set_: Fields to change in every recipe, for example optimizer.updates=8.
        config: Settings of the runs.
        out: Folder for the results; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
    """
    run("compare", recipes, envs, set_, config, out, overwrite)


def run(
    name: str,
    recipes: tuple[str, ...],
    envs: tuple[str, ...],
    assignments: tuple[str, ...],
    config: ToyConfig,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Train, summarise, print, and leave a run folder with figures and a report."""
    torch.set_num_threads(1)  # the tensors are small: with more threads the hand-over costs more than the work
    loaded = [recipe_with(source, assignments) for source in recipes]
    record = {"recipes": [r.as_dict() for r in loaded], "envs": list(envs), "settings": asdict(config)}
    with RunFolder.create(choose_out(out, name), {"kind": "compare", **record}, overwrite=overwrite) as folder:
        with progress_bar() as start:
            result = compare(loaded, envs, config, lambda env, recipe: start(f"{recipe} on {env}", config.iterations))
        save(folder, result)
        print_comparison(result)
    show_report(folder.path)


def save(folder: RunFolder, result: Comparison) -> None:
    """Write the summary, the curves and the pictures."""
    from etr.plots.comparison import comparison_figures
    from etr.plots.files import save_figures

    folder.write_json("comparison.json", {"rows": result.rows, "improvement": result.improvement})
    for step, row in curve_rows(result.histories):
        folder.log(step, row)
    save_figures(comparison_figures(result), folder.figures)


def print_comparison(result: Comparison) -> None:
    """The comparison as tables: one row per environment and recipe, then the probabilities of improvement."""
    keys = dict.fromkeys((row["env"], row["recipe"]) for row in result.rows)
    cells = {(row["env"], row["recipe"], row["metric"]): interval(row, "iqm") for row in result.rows}
    rows = [[env, recipe, *(cells[env, recipe, what] for what in MEASURES)] for env, recipe in keys]
    seeds = result.rows[0]["n_seeds"]
    caption = f"Interquartile mean over {seeds} seeds [95 % stratified bootstrap interval]. " + "; ".join(
        f"{name}: {meaning}" for name, meaning in MEASURES.items()
    )
    print_table("Comparison", ["environment", "recipe", *MEASURES], rows, caption)
    if result.improvement:
        rows = [
            [f"{r['recipe']} > {r['against']}", r["env"], r["metric"], interval(r, "probability")]
            for r in result.improvement
        ]
        caption = "Chance that a random seed of the first beats one of the second; 0.5 means no difference."
        print_table("Probability of improvement", ["pair", "environment", "measure", "probability"], rows, caption)


COMMANDS = {"toy": toy, "compare": compare_command}
