"""All registered objectives at their defaults on the same seeds, in one table: `etr compare --all`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from etr import stats
from etr.recipe import load_recipe
from etr.toy.cache import Cache
from etr.toy.compare import compare, load_env
from etr.toy.config import ToyConfig
from etr.toy.inputs import supplies
from etr.toy.measures import defined

BASELINE = "grpo"
MEASURES = ("final score", "final entropy")
CLIPPED = "zero gradient"  # share of tokens with A ≠ 0 that are clipped, mean over training
Row = dict[str, Any]


def census(
    names: Sequence[str],
    envs: Sequence[str],
    config: ToyConfig,
    progress: Callable[[str, str], Callable[[int], None]] = lambda env, name: lambda step: None,
    cache: Cache | None = None,
) -> list[Row]:
    """One row per environment, objective and measure: IQM with a 95 % interval over seeds.

    A row has "env", "recipe", "metric" and "iqm", "low", "high", "n_seeds", or "lacks": what the environment does not
    have. Rows of `MEASURES` also have "difference" and "p_holm": GRPO minus this one on the same random numbers, with
    the p-value corrected for all objectives. Raises InputError as `compare` does.
    """
    rows: list[Row] = []
    for env in envs:
        given = set(supplies(load_env(env)))
        fit = [BASELINE, *(n for n in names if n != BASELINE and load_recipe(n).objective.needs <= given)]
        found = compare([load_recipe(name) for name in fit], [env], config, progress, cache)
        against = {(d["against"], d["metric"]): d for d in found.differences}
        for row in found.rows:
            if row["env"] == env and row["metric"] in MEASURES:
                other = against.get((row["recipe"], row["metric"]), {})
                rows.append(row | {key: other[key] for key in ("difference", "p_holm") if key in other})
        for name, history in found.histories[env].items():
            shares = defined(history.curves["region/zero_grad_frac"].nanmean(-1))
            if len(shares) >= stats.FEWEST_SEEDS:
                band = stats.iqm_band(shares, torch.Generator().manual_seed(0))._asdict()
                iqm, low, high = (float(value) for value in band.values())
                rows.append({"env": env, "recipe": name, "metric": CLIPPED, "iqm": iqm, "low": low, "high": high})
        for name in names:
            if name not in fit:
                lacks = sorted(load_recipe(name).objective.needs - given)
                rows += [{"env": env, "recipe": name, "metric": m, "lacks": lacks} for m in (*MEASURES, CLIPPED)]
    return rows


def verdict(row: Row) -> str:
    """Does this differ from GRPO: "above", "below" or "" (no difference seen, or none asked)."""
    if row.get("p_holm", 1.0) > 0.05:
        return ""
    return "below" if row["difference"] > 0 else "above"
