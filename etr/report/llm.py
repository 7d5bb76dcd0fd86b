"""The report of an LLM run: curves, held-out questions before and after, sampled answers, tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.plots import caption, llm_curves, png
from etr.report import tokens
from etr.report.page import Picture, Sample, Section
from etr.report.parts import folded, interval
from etr.runs import METRICS, read_config, read_metrics

EVAL, SAMPLES = "eval.json", "samples.json"
ENDS = 10  # steps at either end of a run that are averaged to say what changed
Row = Mapping[str, float]
Table = tuple[list[str], list[list[str]]]


def sections(run: Path, source: str) -> list[Section]:
    """What was trained, how it went, and what the model answers. Raises InputError for a broken file."""
    config, rows = read_config(run), _rows(run)
    name, settings = _name(config, run), config.get("settings", {})
    model, task = settings.get("model", "a model"), settings.get("task", "a task")
    note, table = _evaluation(run)
    first = Section(
        f"{name}: {model} on {task}",
        f"{progress(rows)} {note}",
        table=table,
        figures=[_curves({name: rows})] if rows else [],
        details=folded(run),
        source=source,
    )
    samples = _samples(run)
    text = "Answers to the same held-out questions, sampled with the same seeds before and after training."
    answers = [Section(f"Sampled answers: {name}", text, samples=samples)] if samples else []
    return [first, *answers, *tokens.section(run, name)]


def side_by_side(runs: Sequence[Path]) -> list[Section]:
    """The curves of several runs in one picture; nothing if there are fewer than two."""
    # A recipe names a run better than its folder does, and has a colour of its own; but names must differ.
    choices = ([_name(read_config(path), path) for path in runs], [path.name for path in runs], list(map(str, runs)))
    names = next(choice for choice in choices if len(set(choice)) == len(runs))
    curves = {name: _rows(path) for name, path in zip(names, runs, strict=True)}
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


def _evaluation(run: Path) -> tuple[str, Table | None]:
    """pass@k and the share of answers cut off, before and after training, with a sentence on what they are."""
    if not (run / EVAL).exists():
        return "", None
    results = read_json(run / EVAL)
    try:
        found = {"before": results["before"]} | ({"after": results["after"]} if "after" in results else {})
        measures = dict.fromkeys(name for values in found.values() for name in values if name.startswith("pass@"))
        rows = [[name, *(interval(**values[name]) for values in found.values())] for name in measures]
        rows.append(["answers cut off", *(f"{values['truncated']:.3f}" for values in found.values())])
        questions = " and ".join(dict.fromkeys(str(values["questions"]) for values in found.values()))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f"'{run / EVAL}' is incomplete ({error}); repeat the run with --overwrite") from error
    note = f"Held-out: mean over {questions} questions [95 % interval, bootstrap over questions]."
    return note, (["held-out questions", *(f"{when} training" for when in found)], rows)


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
