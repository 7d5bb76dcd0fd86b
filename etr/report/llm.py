"""The report of an LLM run: curves, held-out questions before and after, sampled answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.plots import caption, llm_curves, png
from etr.report.page import Picture, Sample, Section
from etr.report.parts import folded, interval
from etr.runs import METRICS, read_config, read_metrics

EVAL, SAMPLES = "eval.json", "samples.json"
ENDS = 10  # steps at either end of a run that are averaged to say what changed
Row = Mapping[str, float]


def sections(run: Path, source: str) -> list[Section]:
    """What was trained, how it went, and what the model answers. Raises InputError for a broken file."""
    config, rows = read_config(run), _rows(run)
    name, settings = _name(config, run), config.get("settings", {})
    model, task = settings.get("model", "a model"), settings.get("task", "a task")
    table = _evaluation(run)
    note = " Held-out questions: mean over questions [95 % interval, bootstrap over questions]." if table else ""
    first = Section(
        f"{name}: {model} on {task}",
        progress(rows) + note,
        table=table,
        figures=[_curves({name: rows})] if rows else [],
        details=folded(run),
        source=source,
    )
    samples = _samples(run)
    text = "Answers to the same held-out questions, sampled with the same seeds before and after training."
    return [first, Section(f"Sampled answers: {name}", text, samples=samples)] if samples else [first]


def side_by_side(runs: Sequence[Path]) -> list[Section]:
    """The curves of several runs in one picture; nothing if there are fewer than two."""
    curves = {path.name: _rows(path) for path in runs}
    recipes = [_name(read_config(path), path) for path in runs]
    if len(set(recipes)) == len(recipes):  # the recipe names a run better than its folder, and has a fixed colour
        curves = dict(zip(recipes, curves.values(), strict=True))
    if len(runs) < 2 or not any(curves.values()):
        return []
    return [Section("LLM runs side by side", figures=[_curves(curves)])]


def progress(rows: Sequence[Row]) -> str:
    """Means of the first and the last steps, in a sentence."""
    if not rows:
        return "No training step has ended yet."
    n = max(1, min(ENDS, len(rows) // 2))
    reward, entropy = ([_mean(part, key) for part in (rows[:n], rows[-n:])] for key in ("reward", "entropy"))
    return (
        f"{len(rows)} training steps. Mean over the first and the last {n}: reward {reward[0]:.3f} → {reward[1]:.3f}, "
        f"entropy {entropy[0]:.3f} → {entropy[1]:.3f} nats per token."
    )


def _mean(rows: Sequence[Row], key: str) -> float:
    values = [row[key] for row in rows if not math.isnan(row.get(key, math.nan))]
    return sum(values) / len(values) if values else math.nan


def _rows(run: Path) -> list[dict[str, float]]:
    return read_metrics(run) if (run / METRICS).exists() else []  # stopped before its first step


def _name(config: Mapping[str, Any], run: Path) -> str:
    recipe = config.get("recipe", {})
    return str(recipe.get("name", run.name) if isinstance(recipe, Mapping) else recipe)


def _curves(runs: Mapping[str, Sequence[Row]]) -> Picture:
    figure = llm_curves(runs)
    return Picture(png(figure), caption(figure))


def _evaluation(run: Path) -> tuple[list[str], list[list[str]]] | None:
    """pass@k before and after training as a table, if the run has evaluated."""
    results = read_json(run / EVAL) if (run / EVAL).exists() else {}
    try:
        found = {when: results[when] for when in ("before", "after") if results.get(when)}
        measures = dict.fromkeys(name for values in found.values() for name in values if name.startswith("pass@"))
        rows = [[name, *(_interval(values[name]) for values in found.values())] for name in measures]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{run / EVAL}' is incomplete ({error}); repeat the run with --overwrite") from error
    return (["held-out questions", *(f"{when} training" for when in found)], rows) if rows else None


def _interval(value: Mapping[str, float] | Sequence[float]) -> str:
    """An interval as JSON has it: with its names, or as a list of estimate, low and high."""
    return interval(**value) if isinstance(value, Mapping) else interval(*value)


def _samples(run: Path) -> list[Sample]:
    """Answers before and after; the latter are missing if the run was stopped."""
    rows = read_json(run / SAMPLES) if (run / SAMPLES).exists() else []
    try:
        return [
            Sample(
                str(row["prompt"]),
                str(row["answer"]),
                str(row["before"]),
                str(row["after"]) if "after" in row else None,
                float(row["reward_before"]),
                float(row["reward_after"]) if "after" in row else None,
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"'{run / SAMPLES}' is incomplete ({error}); repeat the run with --overwrite") from error
