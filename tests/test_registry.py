"""Objectives by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import etr
from etr import registry
from etr.errors import FieldError, InputError
from etr.objective import Objective, Paper
from etr.objectives.etr import ETR
from etr.objectives.grpo import GRPO
from etr.registry import objective_class


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_OBJECTIVES", dict(registry._OBJECTIVES))
    yield


def rule(name: str) -> type[Objective]:
    """Define and register a class, as a notebook cell does."""

    @etr.register(name)
    @dataclass(frozen=True)
    class Rule(GRPO):
        strength: float = 0.5

    return Rule


def test_the_list_is_sorted_and_has_one_name_per_file() -> None:
    names = etr.list_objectives()
    assert names == sorted(names)
    folder = Path(etr.objectives.__file__).parent
    assert set(names) == {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {objective_class(name).name for name in names} == set(names)


def test_register_adds_a_name() -> None:
    cls = rule("a_new_rule")
    assert "a_new_rule" in etr.list_objectives()
    assert etr.get("a_new_rule", strength=0.7, eps_high=0.3) == cls(strength=0.7, eps_high=0.3)  # type: ignore[call-arg]
    assert cls.name == "a_new_rule" and GRPO.name == "grpo"  # the parent keeps its own


def test_a_name_that_is_taken() -> None:
    wanted = "objective 'etr' is already registered by etr.objectives.etr.ETR; choose another name"
    with pytest.raises(InputError, match=re.escape(wanted)):
        rule("etr")
    assert objective_class("etr") is ETR and ETR.name == "etr"  # nothing has changed


def test_running_a_cell_twice_replaces_the_class() -> None:
    first, second = rule("a_new_rule"), rule("a_new_rule")
    assert first is not second and objective_class("a_new_rule") is second


def test_get() -> None:
    assert etr.get("etr") == ETR()
    assert etr.get("etr", micro=0.1) == ETR(micro=0.1) != ETR()
    with pytest.raises(FieldError, match="unknown field of objective 'etr': 'mikro'; did you mean 'micro'"):
        etr.get("etr", mikro=0.1)
    with pytest.raises(InputError, match="unknown objective 'grpo_wid'; did you mean 'grpo_wide'"):
        etr.get("grpo_wid")


@pytest.mark.parametrize("name", etr.list_objectives())
def test_every_objective_says_where_it_comes_from(name: str) -> None:
    cls = objective_class(name)
    assert "paper" in vars(cls), "inherited from another objective"
    assert isinstance(cls.paper, Paper) and cls.paper.title
    assert cls.paper.arxiv == "" or re.fullmatch(r"\d{4}\.\d{5}", cls.paper.arxiv)
    assert cls.paper.evidence in ("verified", "third-party", "reconstructed")


def test_objectives_are_frozen() -> None:
    with pytest.raises(AttributeError):
        etr.get("etr").eps_low = 0.5  # type: ignore[attr-defined]
