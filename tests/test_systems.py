"""The table of ninety-five systems is whole, and what it says of this project is true."""

from __future__ import annotations

import importlib
import re

import etr
from etr.objective import Objective
from etr.systems import CATEGORIES, SYSTEMS


def test_every_system_is_here_or_says_why_not() -> None:
    assert [system.number for system in SYSTEMS] == list(range(1, 96))
    assert len({system.name for system in SYSTEMS}) == 95
    for system in SYSTEMS:
        assert bool(system.found) != bool(system.reason), system
        assert len(system.reason.split()) <= 5, system
        assert re.fullmatch(r"\d{4}\.\d{5}|\d{4}(-\d\d)?", system.arxiv), system
        assert system.category in CATEGORIES.values()


def test_what_is_said_to_be_here_is_here() -> None:
    for system in SYSTEMS:
        for name in system.found:
            if "." not in name:
                assert name in etr.list_objectives(), system
                continue
            module = importlib.import_module(name)
            public = [thing for key, thing in vars(module).items() if not key.startswith("_")]
            own = [thing for thing in public if getattr(thing, "__module__", "") == name]
            assert own and all(thing.__doc__ for thing in own), system


def test_an_implemented_system_names_its_own_paper() -> None:
    """The arXiv number in the table is that of the objective's file, wherever both have one."""
    for system in SYSTEMS:
        papers = [etr.get(name).paper.arxiv for name in system.found if "." not in name]
        if "." in system.arxiv and any(papers):
            assert system.arxiv in papers, system


def test_objectives_that_change_no_region_say_what_they_change() -> None:
    """The default is "trust region": of the 95 systems, those listed under another category must say so."""
    kinds = {name: etr.get(name).category for name in etr.list_objectives()}
    assert set(kinds.values()) == {"trust region", "advantage", "entropy", "sampling"}
    for system in SYSTEMS:
        for name in system.found:
            if system.category in ("advantage", "entropy", "sampling") and "." not in name:
                assert kinds[name] != "trust region", name
    assert Objective.category == "trust region"
