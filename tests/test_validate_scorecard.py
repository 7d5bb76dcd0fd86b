"""The scorecard as a file: whole, checkable, and no longer valid when the recipe or the code is another."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path

import pytest

from etr.errors import InputError
from etr.provenance import loss_fields, loss_hash, loss_sources
from etr.recipe import Recipe, load_recipe
from etr.validate import CRITERIA, FILE, ORDER, SUITE, Scorecard, default_folder, read_scorecard, write_scorecard
from etr.validate.page import sections, verdict_picture

PASSED = {
    "name": "sign", "outcome": "pass", "required": True, "title": "t", "line": "l", "text": "cosine 0.9",
    "value": 0.9, "low": 0.8, "high": 0.95, "used": 0.1, "used_low": 0.05, "used_high": 0.2,
    "failing": "check the sign", "details": [["a", "b"]],
}  # fmt: skip
FAILED = {**PASSED, "name": "cost", "outcome": "fail", "used": 9.0, "used_low": 8.0, "used_high": 10.0}
ABSENT = {**PASSED, "name": "splits", "outcome": "not applicable", "used": None, "used_low": None, "required": False}


WHOLE = tuple({**PASSED, "name": name, "required": CRITERIA[name].required} for name in ORDER)


def card(recipe: Recipe, *criteria: dict[str, object], quick: bool = False) -> Scorecard:
    return Scorecard(
        recipe=recipe.as_dict(),
        name=recipe.name,
        criteria=criteria or WHOLE,
        loss_hash=loss_hash(recipe),
        sources=loss_sources(recipe),
        fields=loss_fields(recipe),
        suite=SUITE,
        quick=quick,
        versions={"etr": "0", "torch": "0", "python": "3"},
        seeds={},
        made={"at": "now", "seconds": 1.0},
    )


def test_a_file_gives_back_what_was_written(tmp_path: Path) -> None:
    made = card(load_recipe("etr", {"micro": 0.3}))
    file = write_scorecard(tmp_path / "a" / "b", made)
    assert file.name == FILE and json.loads(file.read_text())["passed"] is True
    assert read_scorecard(file) == read_scorecard(file.parent) == made
    assert made.mismatches(load_recipe("etr", {"micro": 0.3})) == []


def test_one_failure_or_one_missing_required_criterion_is_no_pass() -> None:
    recipe = load_recipe("grpo")
    assert card(recipe, PASSED, ABSENT).passed
    failed = card(recipe, PASSED, FAILED)
    assert not failed.passed and failed.reasons() == ["cost: check the sign (cosine 0.9)"]
    assert card(recipe, {**ABSENT, "required": True}).failed == ["splits"]


def test_other_fields_are_named() -> None:
    made = card(load_recipe("etr"))
    (one,) = made.mismatches(load_recipe("etr", {"micro": 0.3}))
    assert one.startswith("objective.micro is 0.3, but was 0.5 when the scorecard was made; run `etr validate etr`")
    assert "advantage is 'leave_one_out', but was None" in made.mismatches(
        load_recipe("etr", {"advantage": "leave_one_out"})
    )[0]  # fmt: skip
    assert made.mismatches(load_recipe("etr", {"optimizer.lr": 0.7})) == []
    assert any("objective.name is 'GRPO', but was 'ETR'" in text for text in made.mismatches(load_recipe("grpo")))


def test_changed_code_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from etr import regions

    made = card(load_recipe("grpo"))
    changed = tmp_path / "regions.py"
    changed.write_text(Path(regions.__file__).read_text() + "\nX = 1\n")
    monkeypatch.setattr(regions, "__file__", str(changed))
    (one,) = made.mismatches(load_recipe("grpo"))
    assert one == "the code of the loss has changed since (etr.regions); run `etr validate grpo` again"


def test_drafts_other_suites_and_edited_files_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("grpo")
    assert "--quick" in card(recipe, quick=True).mismatches(recipe)[0]
    assert "suite 0, but this is etr's suite" in dataclasses.replace(card(recipe), suite="0").mismatches(recipe)[0]
    edited = dataclasses.replace(card(recipe), loss_hash="0" * 64)
    assert "it was edited" in edited.mismatches(recipe)[0]
    file = write_scorecard(tmp_path, card(recipe, PASSED, FAILED))
    file.write_text(file.read_text().replace('"passed": false', '"passed": true'))
    with pytest.raises(InputError, match=r"says passed: true, which its criteria do not bear out \(cost: "):
        read_scorecard(file)


@pytest.mark.parametrize(
    ("criteria", "message"),
    [
        (WHOLE[:1], "criteria are not those of the suite (bfloat16, cost,"),
        ((*WHOLE, WHOLE[0]), "criteria are not those of the suite (their order or number)"),
        (({**WHOLE[0], "outcome": "skipped"}, *WHOLE[1:]), "'laws-kept' has outcome 'skipped'"),
        (({**WHOLE[0], "required": False}, *WHOLE[1:]), "'laws-kept' has outcome 'pass' and required False"),
    ],
)
def test_only_the_whole_suite_counts(criteria: tuple[dict[str, object], ...], message: str) -> None:
    recipe = load_recipe("grpo")
    (one,) = card(recipe, *criteria).mismatches(recipe)
    assert message in one
    assert card(recipe).mismatches(recipe) == []
    assert "laws-kept" in card(recipe, {**WHOLE[0], "outcome": "skipped", "required": False}).failed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no scorecard"),
        ("{", "is not valid JSON"),
        ("[]", "is no scorecard"),
        ('{"name": "x"}', "is no scorecard"),
    ],
)
def test_no_scorecard_is_one_sentence(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=message):
        read_scorecard(tmp_path)


def test_names_become_folders() -> None:
    assert default_folder("../my etr").as_posix() == "runs/scorecards/my-etr"
    assert default_folder("...").as_posix() == "runs/scorecards/recipe"


def test_the_page_says_what_failed_and_draws_what_was_measured() -> None:
    made = card(load_recipe("grpo"), PASSED, FAILED, ABSENT)
    titles = [section.title for section in sections(made, {})]
    assert titles == ["Not passed: 1 of 3 criteria", "What to mend", "Details"]
    axes = verdict_picture(made.criteria).axes[0]
    markers = [line.get_marker() for line in axes.lines if line.get_marker() in (">", "o", "<")]
    assert markers == ["o", ">"]  # the failure lies beyond the picture
    assert [text.get_text() for text in axes.texts] == ["not applicable"]


def test_the_docs_have_every_criterion(monkeypatch: pytest.MonkeyPatch) -> None:
    docs = Path(__file__).parent.parent / "docs"
    monkeypatch.syspath_prepend(docs / "_ext")
    cards = importlib.import_module("cards")
    page = cards.fill((docs / "scorecard.md").read_text(encoding="utf-8"))
    for criterion in CRITERIA.values():
        for text in (f"`{criterion.name}`", criterion.title, criterion.line, criterion.because, criterion.failing):
            assert text in page
    assert f"Suite {SUITE}." in page


def test_what_the_lines_say_of_the_objectives_here_was_measured() -> None:
    """docs/results/scorecards.py made the file; the sentences are in the criteria."""
    file = Path(__file__).parent.parent / "docs/results/scorecards.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    assert record["suite"] == SUITE and len(record["rows"]) >= 110
    values = {
        name: {objective: row[name][1] for objective, row in record["rows"].items() if row[name][1] is not None}
        for name in CRITERIA
    }
    assert {name for name, value in values["stale-data"].items() if value > 3} == {"spo_simple", "trpo"}
    assert min(values["stale-data"][name] for name in ("spo_simple", "trpo")) > 10
    assert {name for name, value in values["extreme-ratios"].items() if value > 3} == {"spo_simple", "r2vpo"}
    assert max(values["cost"].values()) < 61 and min(values["sign"].values()) > 0.9
    assert {name for name, row in record["rows"].items() if row["splits"][0] == "fail"} == {"bnpo"}
    assert max(values["bfloat16"].values()) < CRITERIA["bfloat16"].limit / 2
    assert set(values["laws-kept"].values()) == {0.0}
