"""From ten lines to a trained language model and the proof of its loss: the page as a new user follows it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from pages import HOWTO, follow, printed

from etr.runs import read_metrics

PAGE = HOWTO / "from_idea_to_llm.md"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after the session, and what each command printed, by its line on the page."""
    folder = tmp_path_factory.mktemp("idea")
    return folder, follow(PAGE, folder)


def test_ten_lines_come_to_a_trained_model(session: tuple[Path, dict[str, str]]) -> None:
    folder, outputs = session
    lines = [line for line in (folder / "gentle.py").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10
    assert "broken" not in outputs["etr check gentle.py:Gentle"]
    scorecard = json.loads((folder / "runs" / "scorecards" / "Gentle" / "scorecard.json").read_text())
    assert scorecard["passed"] is True
    rows = read_metrics(folder / "runs" / "promoted" / "run")
    assert [row["step"] for row in rows] == [1, 2, 3] and all(row["grad_norm"] > 0 for row in rows)


def test_the_proof_is_bit_equal_in_both_trainers(session: tuple[Path, dict[str, str]]) -> None:
    _, outputs = session
    out = outputs["etr replay runs/promoted/run"]
    for path in ("toy", "llm"):
        assert re.search(rf"│ {path} +│.+│ bit-equal +│", out)


def test_another_line_of_code_needs_another_scorecard(session: tuple[Path, dict[str, str]]) -> None:
    folder, outputs = session
    file = folder / "gentle.py"
    file.write_text(file.read_text().replace("self.care * self.eps_low", "0.5 * self.care * self.eps_low"))
    (promote,) = (line for line in outputs if line.startswith("etr promote"))
    with pytest.raises(AssertionError, match=r"gentle\.py"):
        printed(folder, *promote.replace("runs/promoted", "runs/other").split())
    assert not (folder / "runs" / "other").exists()
