"""The report of a comparison of recipes on toy environments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.plots import caption, comparison_forest, png
from etr.report.page import Picture, Section
from etr.report.parts import folded, interval, saved_pictures

FILE = "comparison.json"
Row = Mapping[str, Any]

SCORES = (
    "Interquartile mean over {seeds} seeds [95 % interval, bootstrap over seeds within each environment]. Intervals "
    "that overlap do not settle which recipe is better; the probabilities of improvement compare the seeds themselves."
)
PAIRS = (
    "Chance that a random seed of the first recipe beats a random seed of the second [95 % interval]; one half is no "
    "difference. The last column is 'not settled' where the interval contains one half."
)

DIFFERENCES = (
    "The first recipe minus another on the same seeds and random numbers: mean [95 % interval, pairs resampled]. The "
    "verdict is by sign flips, corrected for the number of comparisons (Holm); with too few seeds there can be none. "
    "Entropies are more or less, not better."
)


def sections(run: Path, source: str) -> list[Section]:
    """Scores, probabilities of improvement and pictures. Raises InputError for a missing or broken file."""
    data = read_json(run / FILE)
    try:
        rows, pairs = data["rows"], data["improvement"]
        scores = Section(
            "Recipes compared",
            SCORES.format(seeds=" or ".join(map(str, sorted({row["n_seeds"] for row in rows})))),
            table=_scores(rows),
            figures=_forests(rows),
            source=source,
        )
        improvement = [Section("Probability of improvement", PAIRS, table=_pairs(pairs))] if pairs else []
        paired = data.get("differences", [])  # a folder of an earlier version has none
        improvement += [Section("Paired differences", DIFFERENCES, table=_differences(paired))] if paired else []
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"'{run / FILE}' is incomplete ({error}); repeat the comparison with --overwrite") from error
    return [scores, *improvement, Section("Training, step by step", figures=saved_pictures(run), details=folded(run))]


def _scores(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    measures = _seen(rows, "metric")
    cells = {(row["env"], row["recipe"], row["metric"]): interval(row["iqm"], row["low"], row["high"]) for row in rows}
    keys = dict.fromkeys((row["env"], row["recipe"]) for row in rows)
    table = [[*key, *(cells.get((*key, measure), "") for measure in measures)] for key in keys]
    return ["environment", "recipe", *measures], sorted(table, key=lambda row: _seen(rows, "env").index(row[0]))


def _pairs(pairs: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    table = [[f"{p['recipe']} > {p['against']}", p["env"], p.get("metric", ""), _chance(p), _verdict(p)] for p in pairs]
    return ["pair", "environment", "measure", "probability", "reading"], table


def _differences(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    table = [
        [f"{r['recipe']} - {r['against']}", r["env"], r["metric"],
         interval(r["difference"], r["low"], r["high"]), r["verdict"]]
        for r in rows
    ]  # fmt: skip
    return ["pair", "environment", "measure", "difference", "verdict"], table


def _chance(pair: Row) -> str:
    return interval(pair["probability"], pair["low"], pair["high"])


def _verdict(pair: Row) -> str:
    if pair["low"] > 0.5:
        return f"{pair['recipe']} is better"
    return f"{pair['against']} is better" if pair["high"] < 0.5 else "not settled"


def _forests(rows: Sequence[Row]) -> list[Picture]:
    """One picture of intervals per measure."""
    pictures = []
    for measure in _seen(rows, "metric"):
        figure = comparison_forest([row for row in rows if row["metric"] == measure], xlabel=measure)
        pictures.append(Picture(png(figure), caption(figure), measure))
    return pictures


def _seen(rows: Sequence[Row], key: str) -> list[str]:
    return list(dict.fromkeys(row[key] for row in rows))
