"""Sweeps: cells, main effects recomputed by loops, tables that data frames read, runs that are not trained twice."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pyarrow.parquet
import pytest
import torch

from etr.errors import FieldError, InputError
from etr.recipe import load_recipe
from etr.toy import sources
from etr.toy.cache import Cache, run_key, train_all
from etr.toy.config import ToyConfig
from etr.toy.measures import MEASURES
from etr.toy.recorder import History
from etr.toy.sweep import Span, Sweep, cell_name, effects, field_of, grid_cells, random_cells, sweep
from etr.toy.tables import write_results
from toy_envs import make_model

CONFIG = ToyConfig(iterations=4, group_size=4, seeds=4)
ENVS = ("bandit-fixed-gap", "tree-easy")
GRPO = load_recipe("grpo")


@pytest.fixture(scope="module")
def result() -> Sweep:
    cells = grid_cells({"eps_high": [0.1, 0.3], "optimizer.lr": [0.05, 0.2, 0.4]})
    return sweep(GRPO, cells, ENVS, CONFIG)


def trimmed_mean(values: list[float]) -> float:
    cut = len(values) // 4
    return fmean(sorted(values)[cut : len(values) - cut])


# Cells ---------------------------------------------------------------------------------------------------------


def test_a_grid_has_every_combination_once() -> None:
    cells = grid_cells({"a": [1, 2], "b": ["x"], "c": [None, 0.5, 1.0]})
    assert len(cells) == 6 and len({cell_name(cell) for cell in cells}) == 6
    assert {(cell["a"], cell["b"], cell["c"]) for cell in cells} == set(
        itertools.product([1, 2], ["x"], [None, 0.5, 1.0])
    )


def test_random_cells_fill_their_ranges() -> None:
    spans = {"optimizer.lr": Span(0.01, 1, log=True), "eps_high": Span(0.2, 0.6), "optimizer.updates": Span(1, 4)}
    cells = random_cells(GRPO, {**spans, "advantage": ["group_center", None]}, 600, seed=3)
    assert cells == random_cells(GRPO, {**spans, "advantage": ["group_center", None]}, 600, seed=3)
    assert cells[:5] != random_cells(GRPO, {**spans, "advantage": ["group_center", None]}, 5, seed=4)
    rates = [cell["optimizer.lr"] for cell in cells]
    assert all(0.01 <= rate <= 1 for rate in rates)
    assert sum(rate < 0.1 for rate in rates) / 600 == pytest.approx(0.5, abs=0.08)  # half of them in each decade
    assert fmean(cell["eps_high"] for cell in cells) == pytest.approx(0.4, abs=0.02)
    for field, values in (("optimizer.updates", [1, 2, 3, 4]), ("advantage", ["group_center", None])):
        for value in values:
            assert sum(cell[field] == value for cell in cells) / 600 == pytest.approx(1 / len(values), abs=0.08)


@pytest.mark.parametrize(
    ("span", "message"),
    [((1, 1, False), "give low < high"), ((0, 1, True), "start it above 0"), ((0, math.inf, False), "holds nothing")],
)
def test_ranges_that_hold_nothing(span: tuple[float, float, bool], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Span(*span)


def test_fields_are_found_by_plain_and_dotted_names() -> None:
    fields = {"eps_high": 0.2, "objective.eps_high": 0.2, "optimizer.updates": 4, "updates": 4, "advantage": None}
    assert {field: field_of(GRPO, field) for field in fields} == fields
    for field, message in (("eps_hihg", "did you mean 'eps_high'"), ("sampler.x", "unknown recipe section")):
        with pytest.raises(FieldError, match=message):
            field_of(GRPO, field)


def test_what_is_wrong_is_said_before_anything_is_trained() -> None:
    for cells, envs, message in (
        ([], ENVS, "at least one cell"),
        ([{"eps_high": -1}], ENVS, "GRPO.eps_high is -1"),
        ([{"eps_high": 0.1}], ["tree-esy"], "unknown environment"),
        ([{"eps_high": 0.1}], ["tree-easy", "bandit", "bandit-spread"], "'bandit' and 'bandit-spread' are one"),
    ):
        with pytest.raises(InputError, match=message):
            sweep(GRPO, cells, envs, CONFIG, lambda done: pytest.fail("it trained"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 3"):
        sweep(GRPO, [{"eps_high": 0.1}], ENVS, dataclasses.replace(CONFIG, seeds=2))


# Results -------------------------------------------------------------------------------------------------------


def test_cells_are_what_a_comparison_of_them_would_be(result: Sweep) -> None:
    """One cell, trained by itself, has the numbers that it has in the sweep."""
    from etr.toy.compare import compare

    cell = {"eps_high": 0.3, "optimizer.lr": 0.2}
    alone = compare([GRPO.replace(cell)], ENVS, CONFIG)
    name = cell_name(cell)
    mine = [{**row, "recipe": "grpo"} for row in result.rows if row["recipe"] == name]
    assert len(mine) == len(alone.rows) > 0
    for found, expected in zip(mine, alone.rows, strict=True):
        assert found == {k: pytest.approx(v, abs=1e-9) if isinstance(v, float) else v for k, v in expected.items()}
    assert result.ranking("final score")[0]["iqm"] == max(
        row["iqm"] for row in result.rows if row["env"] == "all" and row["metric"] == "final score"
    )


def test_main_effects_average_over_the_other_field(result: Sweep) -> None:
    found = {(row["field"], row["value"], row["metric"]): row for row in result.effects}
    assert len(found) == len(result.effects) == (2 + 3) * 3
    for field, value in [("eps_high", 0.1), ("eps_high", 0.3), ("optimizer.lr", 0.05), ("optimizer.lr", 0.4)]:
        names = [name for name, cell in result.cells.items() if cell[field] == value]
        pooled = []
        for env, seed in itertools.product(ENVS, range(4)):
            pooled.append(fmean(result.scores[name][env]["learning score"][seed].item() for name in names))
        row = found[field, str(value), "learning score"]
        assert row["iqm"] == pytest.approx(trimmed_mean(pooled), abs=1e-12) and row["n_cells"] == len(names)
        assert row["low"] <= row["iqm"] <= row["high"]


def test_a_number_of_many_values_is_cut_into_thirds() -> None:
    values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    cells = {f"c{v}": {"eps_high": v} for v in reversed(values)}
    scores = {n: {"e": {m: torch.full((4,), c["eps_high"]) for m in MEASURES}} for n, c in cells.items()}
    rows = [row for row in effects(cells, scores) if row["metric"] == "final score"]
    assert [(row["value"], row["n_cells"]) for row in rows] == [("0.1 to 0.3", 3), ("0.4 to 0.6", 3), ("0.7 to 0.9", 3)]
    assert [row["iqm"] for row in rows] == pytest.approx([0.2, 0.5, 0.8])


def test_the_tables_are_read_back(result: Sweep, tmp_path: Path) -> None:
    write_results(tmp_path, result.seeds)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert table.to_pylist() == lines and len(lines) == len(ENVS) * 6 * 4
    assert table.column_names[:5] == ["env", "recipe", "eps_high", "optimizer.lr", "seed"]
    for row in lines:
        scores = result.scores[row["recipe"]][row["env"]]
        assert row["recipe"] == cell_name({"eps_high": row["eps_high"], "optimizer.lr": row["optimizer.lr"]})
        for what in MEASURES:
            value = scores[what][row["seed"]].item()
            assert row[what.replace(" ", "_")] == (None if math.isnan(value) else pytest.approx(value, rel=1e-12))
    assert any(row["matched_entropy"] is None for row in lines)  # some never reach 0.9 in 4 iterations


def test_columns_of_mixed_values_have_one_type(tmp_path: Path) -> None:
    rows = [{"a": 0, "b": "none", "c": None, "d": 1}, {"a": 0.25, "b": 0.5, "c": math.nan, "d": 2}]
    write_results(tmp_path, rows)
    table = pyarrow.parquet.read_table(tmp_path / "results.parquet")
    assert table.to_pylist() == [{"a": 0.0, "b": "none", "c": None, "d": 1}, {"a": 0.25, "b": "0.5", "c": None, "d": 2}]


# Cache ---------------------------------------------------------------------------------------------------------


def equal(one: History, two: History, tolerance: float = 0.0) -> bool:
    """Every number, its precision, and the kind of every field; NaN equals NaN."""
    names = [field.name for field in dataclasses.fields(History)]
    return all(same(getattr(one, name), getattr(two, name), tolerance) for name in names)


def same(a: object, b: object, tolerance: float) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key], tolerance) for key in a)
    return type(a) is type(b) and a == b


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the recipes that are really trained."""
    from etr.toy import cache

    trained: list[str] = []
    train_together = cache.train_together

    def spy(recipes, *rest):  # type: ignore[no-untyped-def]
        trained.extend(recipe.name for recipe in recipes)
        return train_together(recipes, *rest)

    monkeypatch.setattr(cache, "train_together", spy)
    monkeypatch.setattr("etr.toy.together.RUNS", 2 * CONFIG.seeds)  # two recipes in a batch,
    monkeypatch.setattr("etr.toy.workers.cores", lambda: 1)  # one batch at a time
    return trained


def recipes(*rates: float) -> list:  # type: ignore[type-arg]
    return [dataclasses.replace(load_recipe("grpo", {"optimizer.lr": rate}), name=f"lr {rate}") for rate in rates]


def test_what_was_trained_is_read_back_to_the_bit(tmp_path: Path, counted: list[str]) -> None:
    model, steps = make_model("tree-easy"), []
    first = train_all(recipes(0.1, 0.2), model, CONFIG, Cache(tmp_path))
    again = train_all(recipes(0.2, 0.3, 0.1), model, CONFIG, Cache(tmp_path), lambda i, step: steps.append((i, step)))
    assert counted == ["lr 0.1", "lr 0.2", "lr 0.3"]
    assert equal(again[0], first[1]) and equal(again[2], first[0]) and not equal(again[1], first[0])
    assert {(0, 4), (1, 4), (2, 4)} <= set(steps)  # also what was read back is reported as done
    train_all(recipes(0.1), model, CONFIG)
    assert counted[3:] == ["lr 0.1"]  # without a cache


def test_an_interrupted_sweep_goes_on(tmp_path: Path, counted: list[str]) -> None:
    model, five = make_model("bandit-fixed-gap"), recipes(0.1, 0.2, 0.3, 0.4, 0.5)

    def interrupt(recipe: int, step: int) -> None:
        if recipe == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(five, model, CONFIG, Cache(tmp_path), interrupt)
    assert len(list(tmp_path.glob("*.npz"))) == 2  # the first two were stored when they were finished
    counted.clear()
    done = train_all(five, model, CONFIG, Cache(tmp_path))
    assert counted == ["lr 0.3", "lr 0.4", "lr 0.5"]
    fresh = train_all(five, model, CONFIG)  # recipes that share a batch may differ from others by rounding
    assert all(equal(a, b, 1e-9) for a, b in zip(done, fresh, strict=True))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "method"])
def test_a_damaged_entry_is_trained_again(tmp_path: Path, counted: list[str], damage: str) -> None:
    model = make_model("bandit-fixed-gap")
    first = train_all(recipes(0.1), model, CONFIG, Cache(tmp_path))
    (entry,) = tmp_path.iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 255
    if damage == "method":  # a compression that no zipfile knows
        at = content.index(b"PK\x01\x02")
        while at >= 0:
            content[at + 10] = 99
            at = content.find(b"PK\x01\x02", at + 1)
    entry.write_bytes({"cut": content[:-100], "empty": b"", "other": b"not an archive"}.get(damage, bytes(content)))
    counted.clear()
    again = train_all(recipes(0.1), model, CONFIG, Cache(tmp_path))
    assert counted == ["lr 0.1"] and equal(again[0], first[0])
    assert Cache(tmp_path).load(entry.stem) is not None  # and it is whole again


def test_a_key_depends_on_all_that_determines_a_run_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("bandit-fixed-gap")
    changed = dataclasses.replace(model, success=model.success.clone().index_fill_(1, torch.tensor([0]), 0.123))
    key = run_key(GRPO, model, CONFIG)
    assert key == run_key(dataclasses.replace(GRPO, name="another"), make_model("bandit-fixed-gap"), CONFIG)
    others = [
        run_key(GRPO.replace({"eps_high": 0.21}), model, CONFIG),
        run_key(GRPO.replace({"optimizer.updates": 3}), model, CONFIG),
        run_key(GRPO.replace({"advantage": "group_center"}), model, CONFIG),
        run_key(load_recipe("grpo_wide"), model, CONFIG),
        run_key(GRPO, changed, CONFIG),
        run_key(GRPO, model, dataclasses.replace(CONFIG, first_seed=1)),
        run_key(GRPO, model, dataclasses.replace(CONFIG, metrics_every=2)),
    ]
    monkeypatch.setattr("etr.toy.cache.house_digest", lambda: "other code")
    others.append(run_key(GRPO, model, CONFIG))
    assert len({key, *others}) == len(others) + 1 and None not in others


def test_editing_a_users_file_or_what_it_uses_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    rule = "from dataclasses import dataclass\nfrom etr.objectives.grpo import GRPO\nfrom a_helper_of_mine import x\n"
    (tmp_path / "a_rule_of_mine.py").write_text(rule + "@dataclass(frozen=True)\nclass Mine(GRPO):\n    pass\n")
    (tmp_path / "a_helper_of_mine.py").write_text("import json\nx = 1\n")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("a_rule_of_mine:Mine")
    model, keys = make_model("bandit-fixed-gap"), set()
    keys.add(run_key(recipe, model, CONFIG))
    for name in ("a_helper_of_mine.py", "a_rule_of_mine.py"):
        (tmp_path / name).write_text((tmp_path / name).read_text() + "y = 2\n")
        keys.add(run_key(recipe, model, CONFIG))
    assert len(keys) == 3 and None not in keys
    monkeypatch.setattr(sys.modules["a_rule_of_mine"], "__file__", None)  # as for a class of a notebook
    assert run_key(recipe, model, CONFIG) is None
    for name in ("a_rule_of_mine", "a_helper_of_mine"):
        monkeypatch.delitem(sys.modules, name)


def test_the_code_that_trains_is_part_of_every_key() -> None:
    """Every module that the trainer loads is among the hashed files, and those that only look at runs are not."""
    code = (
        "import etr.toy.together, toy_envs, sys; "
        "print(*(m.__file__ for n, m in list(sys.modules.items()) if n.split('.')[0] in ('etr', 'toy_envs')))"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    hashed = {str(path) for path in sources.house_files()}
    assert len(loaded) > 20 and set(loaded) <= hashed
    assert not {path for path in hashed if "/cli/" in path or "/plots/" in path or path.endswith("toy/cache.py")}


def test_the_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ETR_CACHE", raising=False)
    assert Cache().folder == Path("runs/.cache") and Path("runs/.cache").is_dir()
    monkeypatch.setenv("ETR_CACHE", str(tmp_path / "elsewhere"))
    assert Cache().folder == tmp_path / "elsewhere"
    Path("file").write_text("in the way")
    with pytest.raises(InputError, match="cannot use 'file/x' as a cache"):
        Cache(Path("file/x"))
