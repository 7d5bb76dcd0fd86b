"""`etr toy` and `etr compare`: recipes on toy environments, hundreds of seeds at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from tyro.conf import OmitArgPrefixes, Positional, arg

from etr.cli.census import compare_all
from etr.cli.options import comparison_folder, interval, print_table, progress_bar, recipe_with, show_report
from etr.errors import InputError
from etr.runs import RunFolder
from etr.toy.cache import Cache
from etr.toy.compare import Comparison, check_request, compare, curve_rows, load_env
from etr.toy.config import ToyConfig
from etr.toy.measures import LEVEL, MATCHED, MEASURES
from etr.toy.recorded_run import record_run
from etr.toy.tables import Row, write_results

Set = Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE ...")]
Envs = Annotated[tuple[str, ...], arg(name="env", aliases=("--envs",), metavar="ENV ...")]


def toy(
    recipe: str = "etr",
    env: str = "bandit-spread",
    set_: Set = (),
    config: OmitArgPrefixes[ToyConfig] = ToyConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    level: float = LEVEL,
    no_cache: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Train one recipe on one toy environment, all seeds at once, with exact reward, entropy and KL.

    Example: etr toy --recipe etr --env tree-medium --set micro=0.3 optimizer.lr=0.05

    Args:
        recipe: An objective's name, a .yaml file, module:Class or path/to/file.py:Class.
        env: Environment: bandit-spread, bandit-fixed-gap, tree-medium, ... (a wrong name lists them all).
        set_: Fields of the recipe to change, for example micro=0.3 optimizer.updates=8.
        config: Settings of the run.
        level: Score at which the matched entropy is read.
        no_cache: Train also what runs/.cache (or the folder in ETR_CACHE) holds already, and store nothing.
        out: Folder for the results; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
    """
    run(f"toy-{Path(recipe).stem}", (recipe,), (env,), set_, config, level, no_cache, out, overwrite)


def compare_command(
    recipes: Annotated[Positional[tuple[str, ...]], arg(metavar="RECIPE ...")] = ("etr", "grpo", "grpo_wide"),
    all_: Annotated[bool, arg(name="all")] = False,
    envs: Envs = ("bandit-spread", "tree-medium"),
    set_: Set = (),
    config: OmitArgPrefixes[ToyConfig] = ToyConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    level: float = LEVEL,
    no_cache: bool = False,
    out: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Compare recipes on the same seeds: interquartile means, intervals, paired differences with verdicts.

    Example: etr compare my_file.py:Mine etr grpo --env bandit-near-tie tree-hard --seeds 128

    Args:
        recipes: Objectives by name, .yaml files, module:Class or path/to/file.py:Class; the first is compared with
            each of the others.
        all_: Every registered objective in one table, instead of recipes; --out names a JSON file then.
        envs: Toy environments.
        set_: Fields to change in every recipe, for example optimizer.updates=8.
        config: Settings of the runs.
        level: Score at which the matched entropies are read.
        no_cache: Train also what runs/.cache (or the folder in ETR_CACHE) holds already, and store nothing.
        out: Folder for the results; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
    """
    if all_:
        if set_:
            raise InputError("--all compares all objectives at their defaults; leave out --set, or name recipes")
        compare_all(envs, config, out, no_cache)
        return
    run("compare", recipes, envs, set_, config, level, no_cache, out, overwrite)


def run(
    name: str,
    recipes: tuple[str, ...],
    envs: tuple[str, ...],
    assignments: tuple[str, ...],
    config: ToyConfig,
    level: float,
    no_cache: bool,
    out: Path | None,
    overwrite: bool,
) -> None:
    """Train, summarise, print, and leave a run folder with results, figures and a report."""
    torch.set_num_threads(1)  # the tensors are small: with more threads the hand-over costs more than the work
    loaded = [recipe_with(source, assignments) for source in recipes]
    check_request(loaded, envs, config, level)  # before there is a folder
    cache = None if no_cache else Cache()
    settings = {"settings": asdict(config), "level": level}
    record = {"recipes": [r.as_dict() for r in loaded], "envs": list(envs), **settings}
    with comparison_folder(out, name, record, overwrite) as folder:
        if len(loaded) == len(envs) == 1:  # a folder holds one record, for `etr replay`
            record_run(folder.path, loaded[0], load_env(envs[0]), config)
        with progress_bar() as start:
            bars = lambda env, recipe: start(f"{recipe} on {env}", config.iterations)  # noqa: E731
            result = compare(loaded, envs, config, bars, cache, level)
        save(folder, result)
        print_comparison(result, config.seeds, level)
    show_report(folder.path)


def save(folder: RunFolder, result: Comparison) -> None:
    """Write the summary, one row per seed, the curves and the pictures."""
    from etr.plots.comparison import comparison_figures
    from etr.plots.files import save_figures

    summary = {"rows": result.rows, "improvement": result.improvement, "differences": result.differences}
    write_results(folder.path, result.seeds)
    for step, row in curve_rows(result.histories):
        folder.log(step, row)
    save_figures(comparison_figures(result), folder.figures)
    folder.write_json("comparison.json", summary)  # last: it marks a finished run


def print_comparison(result: Comparison, seeds: int, level: float) -> None:
    """The comparison as tables: one row per environment and recipe, then the first recipe against each other."""
    print_measures("Comparison", result.rows, seeds, level)
    where = _place(result.rows)
    if result.differences:
        rows = [
            [f"{r['recipe']} - {r['against']}", *where(r), r["metric"], interval(r, "difference"), _p(r), r["verdict"]]
            for r in result.differences
        ]
        caption = (
            "Mean difference over pairs of one seed [95 % bootstrap interval]; p: sign-flip test, corrected by Holm "
            "over all rows of the measure; verdict on the first recipe: 'no difference seen' where p is above 0.05, "
            "'too few seeds to tell' where no result of so few pairs could bring it to 0.05."
        )
        header = ["pair", *where(None), "measure", "difference", "p", "verdict"]
        print_table("Paired differences on the same random numbers", header, rows, caption)
    if result.improvement:
        rows = [
            [f"{r['recipe']} > {r['against']}", *where(r), r["metric"], interval(r, "probability")]
            for r in result.improvement
        ]
        caption = "Chance that a random seed of the first beats one of the second; 0.5 means no difference."
        print_table("Probability of improvement", ["pair", *where(None), "measure", "probability"], rows, caption)


def print_measures(
    title: str, rows: Sequence[Row], seeds: int, level: float, note: str = "", most: int | None = None
) -> None:
    """One line per environment and recipe, at most so many, with the interval of every measure."""
    where = _place(rows)
    cells = {(row["env"], row["recipe"], row["metric"]): _cell(row, seeds) for row in rows}
    keys = list(dict.fromkeys((row["env"], row["recipe"]) for row in rows))[:most]
    measures = [what for what in MEASURES if what != MATCHED or {env for env, _ in keys} != {"all"}]
    lines = [
        [*where({"env": env}), recipe, *(cells.get((env, recipe, what), _absent(env)) for what in measures)]
        for env, recipe in keys
    ]
    caption = (
        f"Interquartile mean over {seeds} seeds [95 % stratified bootstrap interval]; level {level:g}. "
        + "; ".join(f"{name}: {MEASURES[name]}" for name in measures)
    )
    title = title if where(None) else f"{title}, {rows[0]['env']}"
    print_table(title, [*where(None), "recipe", *measures], lines, f"{note}{caption}.")


def _place(rows: Sequence[Row]) -> Callable[[Row | None], list[str]]:
    """The cell of a row for its environment, or its header for None; no cell at all if there is only one."""
    if len({row["env"] for row in rows}) == 1:
        return lambda row: []
    return lambda row: ["environment" if row is None else row["env"]]


def _p(row: Row) -> str:
    return f"{row['p_holm']:.4f}"


def _cell(row: Row, seeds: int) -> str:
    few = f" ({row['n_seeds']} of {seeds})" if row["n_seeds"] < seeds else ""
    return interval(row, "iqm") + few


def _absent(env: str) -> str:
    return "" if env == "all" else "not reached"


COMMANDS = {"toy": toy, "compare": compare_command}
