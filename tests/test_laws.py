"""Every registered objective, at its defaults and at its declared examples, against every law."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

import etr
from etr.laws import LAWS, check_law
from etr.registry import objective_class

CASES = [
    pytest.param(name, fields, id=name if not fields else f"{name}-{dict(fields)}")
    for name in etr.list_objectives()
    for fields in ({}, *objective_class(name).examples)
]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize(("name", "fields"), CASES)
def test_law(name: str, fields: Mapping[str, object], law: str) -> None:
    verdict = check_law(law, etr.get(name, **fields))
    assert verdict.outcome != "broken", f"{name} {law}: {verdict.detail}"
