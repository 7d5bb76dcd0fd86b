"""Sweeps: many settings of one recipe on the same seeds; which were best, and what each field did on average."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from etr import stats
from etr.errors import InputError
from etr.recipe import Recipe
from etr.toy.cache import Cache, train_all
from etr.toy.compare import check_request
from etr.toy.config import ToyConfig
from etr.toy.measures import LEVEL, measure
from etr.toy.tables import Row, Scores, seed_rows, summary_rows

Cell = Mapping[str, Any]  # field -> value
MOST_VALUES = 6  # of a number that has more values, each third of them counts as one


@dataclass(frozen=True)
class Span:
    """Values between two ends, drawn evenly, or evenly in the logarithm. Raises InputError for ends out of order."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise InputError(f"a range from {self.low} to {self.high} holds nothing; give low < high")
        if self.log and self.low <= 0:
            raise InputError(f"a logarithmic range starts at {self.low}; start it above 0")

    def at(self, u: float, whole: bool) -> float | int:
        """The value at the share u of the range; `whole` rounds to numbers that are all equally likely."""
        low, high = (self.low, self.high + 1) if whole else (self.low, self.high)
        value = low * (high / low) ** u if self.log else low + (high - low) * u
        return min(int(value), int(self.high)) if whole else float(f"{value:.4g}")  # four digits say enough


@dataclass(frozen=True)
class Sweep:
    """Every cell with its recipe's name, and what was measured.

    cells: name -> its fields; rows: one per environment, cell and measure, as in a `Comparison`; effects: one per field
    and value; seeds: one per environment, cell and seed, with a column for every swept field; scores: per seed.
    """

    cells: dict[str, Cell]
    rows: list[Row]
    effects: list[Row]
    seeds: list[Row]
    scores: Scores

    def ranking(self, what: str) -> list[Row]:
        """The summary rows of one measure over all environments, the highest first."""
        envs = list(dict.fromkeys(row["env"] for row in self.rows))
        rows = [row for row in self.rows if row["metric"] == what and row["env"] == envs[-1]]
        return sorted(rows, key=lambda row: -row["iqm"])


def grid_cells(values: Mapping[str, Sequence[object]]) -> list[Cell]:
    """Every combination, the last field moving fastest.

    >>> grid_cells({"micro": [0, 1], "optimizer.lr": [0.1]})
    [{'micro': 0, 'optimizer.lr': 0.1}, {'micro': 1, 'optimizer.lr': 0.1}]
    """
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def random_cells(recipe: Recipe, spans: Mapping[str, Span | Sequence[object]], count: int, seed: int) -> list[Cell]:
    """`count` cells drawn from ranges and lists; a field that holds a whole number gets whole numbers."""
    generator = Generator().manual_seed(seed)
    cells: list[Cell] = []
    for _ in range(count):
        cell: dict[str, object] = {}
        for (field, span), u in zip(spans.items(), torch.rand(len(spans), generator=generator).tolist(), strict=True):
            whole = type(field_of(recipe, field)) is int
            cell[field] = span.at(u, whole) if isinstance(span, Span) else span[int(u * len(span))]
        cells.append(cell)
    return cells


def field_of(recipe: Recipe, field: str) -> object:
    """The value that a recipe has in a field, by plain or dotted name. Raises FieldError for an unknown one."""
    section, _, name = field.rpartition(".")
    if field == "advantage":
        return recipe.advantage
    for key, part in (("objective", recipe.objective), ("optimizer", recipe.optimizer)):
        if section in ("", key) and name in vars(part):
            found: object = vars(part)[name]
            return found
    recipe.replace({field: None})
    raise AssertionError(f"a recipe takes '{field}', which it does not have")


def sweep(
    recipe: Recipe,
    cells: Sequence[Cell],
    envs: Sequence[str],
    config: ToyConfig,
    progress: Callable[[int], None] = lambda done: None,
    cache: Cache | None = None,
    level: float = LEVEL,
) -> Sweep:
    """Train every cell on every environment with the same seeds; `progress` gets the number of iterations done.

    A cell given twice is trained once. Raises InputError or FieldError as `cell_recipes` and `check_request` do, before
    anything is trained.
    """
    recipes = cell_recipes(recipe, cells)
    models = check_request(recipes, envs, config, level)
    named = {cell_name(cell): cell for cell in cells}
    done = [0] * (len(envs) * len(recipes))
    scores: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in named}
    for place, (env, model) in enumerate(models.items()):

        def moved(cell: int, step: int, first: int = place * len(recipes)) -> None:
            done[first + cell] = step
            progress(sum(done))

        for name, history in zip(named, train_all(recipes, model, config, cache, moved), strict=True):
            scores[name][env] = measure(history, model, level)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return Sweep(named, summary_rows(scores), effects(named, scores), list(seed_rows(scores, seeds, named)), scores)


def cell_recipes(recipe: Recipe, cells: Sequence[Cell]) -> list[Recipe]:
    """The recipe of every cell, once each and under the cell's name. Raises InputError if there is none, and FieldError
    for a cell that is no recipe."""
    if not cells:
        raise InputError("a sweep needs at least one cell; give fields with values")
    named = {cell_name(cell): cell for cell in cells}
    return [dataclasses.replace(recipe.replace(cell), name=name) for name, cell in named.items()]


def cell_name(cell: Cell) -> str:
    """What a cell is called in tables.

    >>> cell_name({"micro": 0.5, "optimizer.lr": 0.1})
    'micro=0.5 lr=0.1'
    """
    return " ".join(f"{field.rpartition('.')[2]}={value}" for field, value in cell.items())


def effects(cells: Mapping[str, Cell], scores: Scores) -> list[Row]:
    """Main effect of every field: the scores at each of its values, averaged over all cells that have it.

    A number with more than `MOST_VALUES` values is cut into thirds. The interval is over seeds: each seed's score is
    first averaged over the cells, then seeds are resampled within each environment.
    """
    rows = []
    for field in next(iter(cells.values())):
        for label, names in _by_value(cells, field).items():
            for what in ("final score", "learning score", "final entropy"):
                envs = list(scores[names[0]])
                of_env = [torch.stack([scores[name][env][what] for name in names]).mean(0) for env in envs]
                found = stats.stratified_bootstrap(torch.stack(of_env), stats.pooled_iqm, Generator().manual_seed(0))
                ends = {"iqm": found.estimate, "low": found.low, "high": found.high}
                rows.append({"field": field, "value": label, "metric": what, **ends, "n_cells": len(names)})
    return rows


def _by_value(cells: Mapping[str, Cell], field: str) -> dict[str, list[str]]:
    """Names of the cells by the value of a field, or by the third of its values."""
    values = {name: cell[field] for name, cell in cells.items()}
    numeric = all(isinstance(value, int | float) for value in values.values())
    distinct = sorted(set(values.values())) if numeric else list(dict.fromkeys(values.values()))
    if not numeric or len(distinct) <= MOST_VALUES:
        return {str(value): [name for name in values if values[name] == value] for value in distinct}
    thirds = [distinct[i * len(distinct) // 3 : (i + 1) * len(distinct) // 3] for i in range(3)]
    return {
        f"{third[0]:.2g} to {third[-1]:.2g}": [name for name in values if third[0] <= values[name] <= third[-1]]
        for third in thirds
    }
