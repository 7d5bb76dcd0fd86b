"""The sentences of docs/results/library.md, against the numbers that are committed beside it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import etr
from etr.toy.census import CLIPPED, MEASURES, verdict

RECORD = json.loads((Path(__file__).parent.parent / "docs/results/library.json").read_text())
CELLS: dict[tuple[str, str, str], dict[str, Any]] = {(r["env"], r["recipe"], r["metric"]): r for r in RECORD["rows"]}
BANDIT, TREE = "bandit-spread", "tree-medium"
SCORE, ENTROPY = MEASURES


def mark(env: str, name: str, metric: str) -> str:
    return verdict(CELLS[env, name, metric])


def iqm(env: str, name: str, metric: str) -> float:
    return float(CELLS[env, name, metric]["iqm"])


def test_every_objective_is_in_the_table_and_finite() -> None:
    assert RECORD["seeds"] >= 32 and RECORD["iterations"] == 50
    for name in etr.list_objectives():
        for metric in MEASURES:
            on_tree = CELLS[TREE, name, metric]
            assert "lacks" not in on_tree and on_tree["low"] <= on_tree["iqm"] <= on_tree["high"]
            bandit = CELLS[BANDIT, name, metric]
            assert math.isfinite(on_tree["iqm"]) and ("lacks" in bandit or math.isfinite(bandit["iqm"]))
            assert ("lacks" in bandit) == bool(etr.get(name).needs & {"hints", "resets"})


@pytest.mark.parametrize("name", ["siren", "dcpo_distribution", "aepo_arbitrary"])
def test_entropy_can_be_kept(name: str) -> None:
    assert mark(BANDIT, name, ENTROPY) == mark(TREE, name, ENTROPY) == "above"
    assert mark(BANDIT, name, SCORE) == ""


@pytest.mark.parametrize("name", ["trpo", "spo_simple", "copg", "f_dpg", "safe", "polychromic"])
def test_much_more_entropy_costs_reward(name: str) -> None:
    assert iqm(BANDIT, name, ENTROPY) > 2 * iqm(BANDIT, "grpo", ENTROPY)
    assert mark(BANDIT, name, ENTROPY) == "above" and mark(BANDIT, name, SCORE) == "below"


@pytest.mark.parametrize("name", ["cispo", "sapo", "gpg", "dro", "r2vpo", "mdpo"])
def test_keeping_every_gradient_pays_on_the_tree(name: str) -> None:
    assert CELLS[TREE, name, CLIPPED]["high"] == CELLS[BANDIT, name, CLIPPED]["high"] == 0
    assert mark(TREE, name, SCORE) == "above"
    if name in ("cispo", "sapo", "gpg"):
        assert mark(BANDIT, name, ENTROPY) == "below"


def test_claims_of_etr() -> None:
    assert mark(TREE, "etr", SCORE) == "above" and 0.0005 < iqm(TREE, "etr", SCORE) - iqm(TREE, "grpo", SCORE) < 0.0015
    assert mark(BANDIT, "etr", ENTROPY) == mark(TREE, "etr", ENTROPY) == ""
    assert mark(TREE, "etr_surprise", ENTROPY) == "above" and mark(TREE, "etr_surprise", SCORE) == "below"


def test_claims_that_do_not_reappear() -> None:
    for name in ("clip_cov", "kl_cov"):
        assert mark(BANDIT, name, ENTROPY) == "below"
    assert mark(TREE, "gmpo", SCORE) == "above" and "above" not in (mark(e, "gmpo", ENTROPY) for e in (BANDIT, TREE))


def test_other_sentences() -> None:
    for name in ("gspo", "luspo"):
        assert iqm(BANDIT, name, CLIPPED) > 0.7 and mark(BANDIT, name, SCORE) == "below"
    assert mark(TREE, "dynamic_sampling", SCORE) == "above"
    for env in (BANDIT, TREE):
        assert iqm(env, "empo", SCORE) < 0.05 and iqm(env, "empo", ENTROPY) < 0.05
    for name in ("riskpo", "gtpo"):
        assert iqm(BANDIT, name, SCORE) < 0.6 and mark(BANDIT, name, SCORE) == "below"
    small = [abs(r["difference"]) for r in RECORD["rows"] if r["metric"] == SCORE and verdict(r)]
    assert sum(x < 0.01 for x in small) / len(small) > 0.5
