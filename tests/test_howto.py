"""The how-to page as a new user follows it: its files are written, its commands run, its words are in the output."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet
import pytest
from pages import HOWTO, follow

PAGE = HOWTO / "try_your_own.md"
QUICK = ("--seeds", "8", "--iterations", "12")  # for the commands after the first comparison


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder after the session, and the output of each command by its line on the page."""
    folder = tmp_path_factory.mktemp("new-user")
    first = ("etr check", "etr compare my_file.py:Mine etr grpo")
    return folder, follow(PAGE, folder, lambda line: () if line.startswith(first) else QUICK)


@pytest.mark.slow
def test_the_objective_is_about_ten_lines_and_keeps_the_laws(session: tuple[Path, dict[str, str]]) -> None:
    folder, outputs = session
    lines = [line for line in (folder / "my_file.py").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) <= 10
    table = outputs["etr check my_file.py:Mine"]
    assert table.count("│ holds") >= 13 and "broken" not in table


@pytest.mark.slow
def test_the_comparison_has_the_three_tables_of_the_page(session: tuple[Path, dict[str, str]]) -> None:
    _, outputs = session
    out = outputs["etr compare my_file.py:Mine etr grpo --env bandit"]
    for title in re.findall(r"^\| \*\*(.+?)\*\* \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE):
        assert title in out
    assert re.search(r"│ Mine +│ +\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]", out)
    for other in ("etr", "grpo"):
        verdict = re.search(rf"Mine - {other} +│ final score .*│ (.+?) +│$", out, re.MULTILINE)
        assert verdict and verdict[1] in ("better", "worse", "no difference seen")
    assert "64 seeds" in out


@pytest.mark.slow
def test_what_is_left_is_what_the_page_says(session: tuple[Path, dict[str, str]]) -> None:
    folder, outputs = session
    runs = {path.name.split("-")[0]: path for path in (folder / "runs").iterdir() if path.is_dir()}
    assert {"compare", "sweep"} <= set(runs) and list((folder / "runs" / ".cache").glob("*.npz"))
    assert (runs["compare"] / "report.html").is_file()
    columns = pyarrow.parquet.read_table(runs["sweep"] / "results.parquet").column_names
    assert {"care", "optimizer.lr", "seed", "final_score", "matched_entropy"} <= set(columns)
    (sweep,) = (out for line, out in outputs.items() if line.startswith("etr sweep"))
    assert "Best cells" in sweep and "Main effect of each field" in sweep and sweep.count("care=") == 6
