"""Rows of results: one per seed for data frames, and summaries over seeds for tables, reports and pictures."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch
from torch import Generator, Tensor

from etr import stats
from etr.files import atomic_write, to_json
from etr.toy.measures import ENTROPIES, MATCHED, MEASURES, defined

Scores = Mapping[str, Mapping[str, Mapping[str, Tensor]]]  # recipe -> environment -> measure -> [seeds]
Row = dict[str, Any]
LEVEL = 0.05  # chance of any false verdict among all comparisons of one measure
UNSEEN = "no difference seen"
TOO_FEW = "too few seeds to tell"


def seed_rows(scores: Scores, seeds: Sequence[int], columns: Mapping[str, Mapping[str, object]]) -> Iterable[Row]:
    """One row per environment, recipe and seed; `columns[recipe]` are further columns, such as the fields of a cell."""
    for recipe, by_env in scores.items():
        for env, measures in by_env.items():
            values = {name: measures[name].tolist() for name in MEASURES}
            for i, seed in enumerate(seeds):
                measured = {name.replace(" ", "_"): values[name][i] for name in MEASURES}
                yield {"env": env, "recipe": recipe, **columns.get(recipe, {}), "seed": seed, **measured}


def write_results(folder: Path, rows: Iterable[Row]) -> None:
    """The rows as `results.jsonl` and `results.parquet`; a value that is not defined is null in both."""
    rows = list(rows)
    atomic_write(folder / "results.jsonl", "".join(to_json(row) + "\n" for row in rows))
    table = pyarrow.table({key: _column([row.get(key) for row in rows]) for row in rows[:1] for key in row})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    atomic_write(folder / "results.parquet", buffer.getvalue())


def _column(values: list[Any]) -> list[Any]:
    """One type for a column: NaN becomes null, whole numbers among others become decimal, other mixtures text."""
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) > 1 and not kinds <= {int, float}:
        return [None if value is None else str(value) for value in values]
    mixed = [float(v) if float in kinds and v is not None else v for v in values]
    return [None if isinstance(v, float) and math.isnan(v) else v for v in mixed]


def summary_rows(scores: Scores) -> list[Row]:
    """Interquartile mean with a 95 % interval for each environment, recipe and measure; "all" pools environments.

    A measure that fewer than 3 seeds have gets no row; `n_seeds` says how many have it. Matched entropies are not
    pooled: nats of different vocabularies at different times do not add up.
    """
    rows = []
    for recipe, by_env in scores.items():
        for env, names in _strata(by_env).items():
            for what in _measures(env):
                values = _stack([by_env[name][what] for name in names])
                if values.shape[-1] < stats.FEWEST_SEEDS:
                    continue
                interval = stats.stratified_bootstrap(values, stats.pooled_iqm, _generator())
                found = {"iqm": interval.estimate, "low": interval.low, "high": interval.high}
                rows.append({"env": env, "recipe": recipe, "metric": what, **found, "n_seeds": values.shape[-1]})
    return rows


def improvement_rows(scores: Scores) -> list[Row]:
    """The chance that a seed of the first recipe beats one of each other, by environment, for the two scores."""
    first, *others = scores
    rows = []
    for other in others:
        for env, names in _strata(scores[first]).items():
            for what in ("final score", "learning score"):
                ours, theirs = (torch.stack([scores[r][n][what] for n in names]) for r in (first, other))
                interval = stats.improvement_interval(ours, theirs, _generator())
                found = {"probability": interval.estimate, "low": interval.low, "high": interval.high}
                rows.append({"env": env, "recipe": first, "against": other, "metric": what, **found})
    return rows


def difference_rows(scores: Scores) -> list[Row]:
    """Mean difference of the first recipe from each other over pairs of one seed, with a verdict.

    p_holm: p-value of the sign-flip test, corrected by Holm over all rows of one measure, so that more recipes and
    environments do not find more by chance. The smallest p-value of n pairs is 2^(1 − n): where even that is not below
    the level after the correction, there are too few seeds to tell. A measure that fewer than 3 pairs have gets no row.
    """
    first, *others = scores
    rows: list[Row] = []
    for what in MEASURES:
        family = []
        for other in others:
            for env, names in _strata(scores[first]).items():
                pair = [torch.stack([scores[r][n][what] for n in names]) for r in (first, other)]
                if what in _measures(env) and (row := _difference(*pair)) is not None:
                    family.append({"env": env, "recipe": first, "against": other, "metric": what, **row})
        strata = _strata(scores[first])
        for row, p in zip(family, stats.holm([row["p"] for row in family]), strict=True):
            least = 2.0 ** (1 - row["n_pairs"] * len(strata[row["env"]])) * len(family)
            row |= {"p_holm": p, "verdict": _verdict(row, p, least)}
        rows += family
    return rows


def _difference(ours: Tensor, theirs: Tensor) -> Row | None:
    """Difference, interval and p-value over the pairs in which both have a value."""
    if ours.shape[0] == 1:
        both = ~(ours.isnan() | theirs.isnan())
        ours, theirs = ours[both].unsqueeze(0), theirs[both].unsqueeze(0)
    if ours.shape[-1] < stats.FEWEST_SEEDS:
        return None
    interval = stats.paired_difference(ours, theirs, _generator())
    p = stats.sign_flip_p_value(ours, theirs, _generator())
    found = {"difference": interval.estimate, "low": interval.low, "high": interval.high, "p": p}
    return {**found, "n_pairs": ours.shape[-1]}


def _verdict(row: Row, p: float, least: float) -> str:
    """What a corrected p-value says of a difference; `least`: the smallest that any result could have had."""
    up, down = ("more", "less") if row["metric"] in ENTROPIES else ("better", "worse")
    if p > LEVEL:
        return TOO_FEW if least > LEVEL else UNSEEN
    return up if row["difference"] > 0 else down


def _strata(by_env: Mapping[str, object]) -> dict[str, list[str]]:
    """Each environment alone, and all of them together when there are several."""
    strata = {env: [env] for env in by_env}
    return strata | {"all": list(by_env)} if len(strata) > 1 else strata


def _measures(env: str) -> list[str]:
    return [what for what in MEASURES if not (env == "all" and what == MATCHED)]


def _stack(values: Sequence[Tensor]) -> Tensor:
    """`[environments, seeds]`; of one environment, the seeds that have a value."""
    return defined(values[0]).unsqueeze(0) if len(values) == 1 else torch.stack(list(values))


def _generator() -> Generator:
    return Generator().manual_seed(0)  # the same rows for the same scores
