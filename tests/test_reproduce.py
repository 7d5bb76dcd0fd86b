"""Every quick statement of the literature as a test of its own, and that a wrong one is told from a right one."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from etr.cli.reproduce import COMMANDS
from etr.errors import InputError
from etr.reproduce import SECTIONS, STATEMENTS, Measured, Result, Statement, Target, check, select
from etr.reproduce.base import agrees, exactly, printed, published, sampled_share
from etr.reproduce.pages import as_json, as_markdown, counts

ROOT = Path(__file__).parent.parent
BY_ID = {s.id: s for s in STATEMENTS}
LONG = {"clip-entropies"}
QUICK = [pytest.param(s, id=s.id, marks=[pytest.mark.slow] if s.id in LONG else []) for s in select()]


@pytest.mark.parametrize("statement", QUICK)
def test_quick_statement(statement: Statement) -> None:
    result = check(statement)
    wrong = [(t, m) for t, m, a in zip(statement.published, result.measured, result.agrees, strict=True) if not a]
    known = {t.name for t, _ in wrong} == set(statement.differs)
    assert known, f"{result.verdict}: {wrong}; a reason is given for {set(statement.differs) or 'none'}"


def test_the_registry() -> None:
    """Ids and names are unique, every section is there, quick ones are the default, and every text says its source."""
    assert len(BY_ID) == len(STATEMENTS)
    assert {s.section for s in STATEMENTS} == set(SECTIONS) == set(range(1, 9))
    assert [s.section for s in STATEMENTS] == sorted(s.section for s in STATEMENTS)
    assert all(s.quick for s in select()) and select(everything=True) == list(STATEMENTS)
    assert {s.section for s in select(4, everything=True)} == {4}
    for s in STATEMENTS:
        names = [t.name for t in s.published]
        assert names and len(set(names)) == len(names), s.id
        assert set(s.differs) <= set(names), s.id
        assert s.text.endswith(".") and s.source and (not s.note or s.note.endswith(".")), s.id
        assert all(t.tolerance >= 0 for t in s.published), s.id


def test_printed_numbers_are_uncertain_by_half_a_digit() -> None:
    found = printed({"a": "1.10", "b": "-1.67e-5", "c": "35"})
    assert [(t.value, t.tolerance) for t in found] == [(1.1, 0.005), (-1.67e-5, 5e-8), (35.0, 0.5)]


def test_a_counted_share_is_uncertain_by_its_sample() -> None:
    """52 % of 2 000: 1.96·√(.52·.48/2 000) = .02190; with ours counted in n = 10 000 (half-width .0098) .02399."""
    target = sampled_share("share", 0.52, 2000)
    assert target.tolerance == pytest.approx(0.021896, abs=1e-6) and target.relation == "="
    ours = Measured(0.52 - 0.0239, 1.96 * math.sqrt(0.25 / 10_000))
    assert agrees(target, ours) and not agrees(target, ours._replace(value=0.52 - 0.0241))
    assert not agrees(sampled_share("share", 0.52, 20_000), Measured(0.5, 0.002))


def spoilt(statement: Statement, spoil: Callable[[Target], Target]) -> Result:
    """The statement with its first number made wrong."""
    first, *rest = statement.published
    return check(dataclasses.replace(statement, published=(spoil(first), *rest)))


@pytest.mark.parametrize("name", ["deviation-scaling", "worked-number", "plateau-times", "silent-groups", "kl-table"])
def test_a_spoilt_number_is_not_reproduced(name: str) -> None:
    """One and a half tolerances beside the truth is enough."""
    statement = BY_ID[name]
    assert check(statement).verdict == "reproduced"
    truth = check(statement).measured[0].value
    result = spoilt(statement, lambda t: t._replace(value=truth + 1.5 * t.tolerance))
    assert result.verdict == "not reproduced"
    assert result.agrees[0] is False and all(result.agrees[1:])


@pytest.mark.parametrize("name", ["pinsker", "lojasiewicz", "soft-lipschitz", "ratio-unbounded"])
def test_a_spoilt_bound_is_not_reproduced(name: str) -> None:
    def tighter(target: Target) -> Target:
        return target._replace(value=target.value * (0.5 if target.relation == "<=" else 3))

    assert spoilt(BY_ID[name], tighter).verdict == "not reproduced"


def test_agreement_takes_both_uncertainties_and_no_more() -> None:
    target = Target("x", 1.0, 0.75)
    assert agrees(target, Measured(2.25, 1.0)) and not agrees(target, Measured(2.25 + 1e-9, 1.0))
    assert agrees(target, Measured(0.25)) and not agrees(target, Measured(0.25 - 1e-9))
    most = Target("x", 1.0, relation="<=")
    assert agrees(most, Measured(0.75, 0.25)) and not agrees(most, Measured(0.75, 0.25 + 1e-9))
    least = Target("x", 1.0, 0.25, ">=")
    assert agrees(least, Measured(1.0, 0.25)) and not agrees(least, Measured(1.0, 0.25 + 1e-9))
    for relation in ("=", "<=", ">="):
        assert not agrees(Target("x", 1.0, 9.0, relation), Measured(math.nan))
        assert not agrees(Target("x", 1.0, 9.0, relation), Measured(1.0, math.nan))
        assert not agrees(Target("x", 1.0, 9.0, relation), Measured(1.0, math.inf))


def statement(*values: float, differs: dict[str, str] | None = None) -> Statement:
    """ "a" should be 1 and "b" 2."""
    targets = published({"a": 1.0, "b": 2.0})
    return Statement("toy", 1, "Text.", "s", "reconstructed", targets, lambda: exactly(*values), differs=differs or {})


def test_a_known_difference_excuses_its_own_number_alone() -> None:
    assert check(statement(1, 2)).verdict == "reproduced"
    assert check(statement(1, 3)).verdict == "not reproduced"
    assert check(statement(1, 3, differs={"b": "why"})).verdict == "differs"
    assert check(statement(0, 3, differs={"b": "why"})).verdict == "not reproduced"
    with pytest.raises(InputError, match=re.escape("publishes 2 numbers but its run gave 3")):
        check(statement(1, 2, 3))


def test_there_is_no_ninth_section() -> None:
    with pytest.raises(InputError, match="there is no section 9; choose one of 1 "):
        select(9)


def test_the_page_and_the_numbers_in_plain_values() -> None:
    results = [check(s) for s in (statement(1, 2), statement(1, 3, differs={"b": "why"}), statement(5, 2))]
    assert counts(results).startswith("1 of 3 statements reproduced; 1 differs; 1 not reproduced; 6 numbers in ")
    page = as_markdown(results)
    assert "| b | 2 | 3 ✗ |" in page and "b: why" in page and page.count("**Reproduced.**") == 1
    plain = json.loads(json.dumps(as_json(results)))
    assert plain[2]["numbers"][0] == {
        "name": "a", "value": 1.0, "tolerance": 0.0, "relation": "=", "text": "",
        "ours": 5.0, "half_width": 0.0, "agrees": False,
    }  # fmt: skip


def test_the_committed_results_are_of_these_statements() -> None:
    """docs/results holds every statement as it stands here, none of them `not reproduced`, and the page made of it."""
    rows = json.loads((ROOT / "docs/results/reproduce.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/theory.md").read_text(encoding="utf-8")
    assert [row["id"] for row in rows] == list(BY_ID)
    for row, s in zip(rows, STATEMENTS, strict=True):
        assert row["statement"] == s.text and row["verdict"] == ("differs" if s.differs else "reproduced")
        assert [n["name"] for n in row["numbers"]] == [t.name for t in s.published]
        for number, target in zip(row["numbers"], s.published, strict=True):
            ours = Measured(number["ours"], number["half_width"])
            assert (number["value"], agrees(target, ours)) == (pytest.approx(target.value), number["agrees"])
        assert f"**{s.id}**: {s.text}" in page


def test_the_command_prints_writes_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce = COMMANDS["reproduce"]
    reproduce(section=7, json=tmp_path / "out.json", page=tmp_path / "page.md")
    assert "3 of 3 statements reproduced" in " ".join(capsys.readouterr().out.split())
    assert [row["id"] for row in json.loads((tmp_path / "out.json").read_text())] == [s.id for s in select(7)]
    assert "## 7. Policy cliff" in (tmp_path / "page.md").read_text(encoding="utf-8")
    monkeypatch.setattr("etr.cli.reproduce.select", lambda section, everything: [statement(1, 3)])
    with pytest.raises(SystemExit) as stop:
        reproduce()
    assert stop.value.code == 1 and "not reproduced: toy" in capsys.readouterr().err
    monkeypatch.setattr(
        "etr.cli.reproduce.select", lambda section, everything: [statement(1, 3, differs={"b": "a good reason"})]
    )
    reproduce()
    assert "a good reason" in capsys.readouterr().out
