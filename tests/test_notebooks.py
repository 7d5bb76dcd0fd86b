"""The notebooks run, keep their form, and turn red when a conclusion is false."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
NOTEBOOKS = sorted((HOUSE / "notebooks").glob("[0-9]*.py"))
LOSS, CLIP = "01_loss_zero_gradient_not", "02_ratio_clip_and_elastic_region"
CELL = re.compile(r"^# %%.*$", re.MULTILINE)
HEADINGS = (
    "## The question",
    "## Predict first",
    "## Why people are confused",
    "## Exercises",
    "### 1. Predict the picture",
    "### 2. Fill the hole",
    "### 3. Hunt the planted bug",
    "## What we found",
)
# Notebook, what it says, and a falsehood to put in its place: a claim, a formula, a constant.
FALSEHOODS = [
    (LOSS, "return p**size + (1 - p) ** size", "return p**size"),
    (CLIP, '["probability"] < 0.5', '["probability"] > 0.5'),
]

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def run(path: Path) -> subprocess.CompletedProcess[str]:
    """Execute a notebook as a script, with short loops and no display."""
    here = {"FAST": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(HOUSE), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, str(path)], env={**os.environ, **here}, capture_output=True, encoding="utf-8", timeout=300
    )


def failing_cell(path: Path, done: subprocess.CompletedProcess[str]) -> str:
    """The cell in which a run stopped, with what was printed and the traceback."""
    lines = re.findall(rf'File "{re.escape(str(path))}", line (\d+)', done.stderr)
    source = path.read_text(encoding="utf-8")
    at = sum(len(line) for line in source.splitlines(keepends=True)[: int(lines[0]) - 1]) if lines else 0
    starts = [0, *(match.start() for match in CELL.finditer(source)), len(source)]
    cell = next(source[a:b] for a, b in pairwise(starts) if a <= at < b)
    return f"{path.name} stopped in this cell:\n{cell}\n--- printed ---\n{done.stdout[-3000:]}\n{done.stderr}"


def last_code_cell(path: Path) -> str:
    return CELL.split(path.read_text(encoding="utf-8"))[-1]


@pytest.mark.slow
@by_name
def test_notebook_runs_and_its_conclusions_hold(path: Path) -> None:
    done = run(path)
    assert done.returncode == 0, failing_cell(path, done)
    assert done.stdout.rstrip().endswith("All conclusions hold.")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "truth", "falsehood"), FALSEHOODS)
def test_a_planted_falsehood_turns_it_red(name: str, truth: str, falsehood: str, tmp_path: Path) -> None:
    source = (HOUSE / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
    assert source.count(truth) == 1, "the notebook changed; plant the falsehood elsewhere"
    copy = tmp_path / f"{name}.py"
    copy.write_text(source.replace(truth, falsehood), encoding="utf-8")
    done = run(copy)
    assert done.returncode != 0 and "AssertionError" in done.stderr
    assert "All conclusions hold." not in done.stdout
    assert last_code_cell(copy).strip() in failing_cell(copy, done)


def test_the_notebooks_are_found() -> None:
    assert [path.stem for path in NOTEBOOKS][:2] == [LOSS, CLIP]


@by_name
def test_notebook_has_every_section_in_order(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    places = [text.find(f"# {heading}\n") for heading in HEADINGS]
    missing = [heading for heading, place in zip(HEADINGS, places, strict=True) if place < 0]
    assert not missing, f"{path.name} lacks {missing}"
    assert places == sorted(places)


@by_name
def test_notebook_ends_with_asserts_on_its_conclusions(path: Path) -> None:
    found = [node for node in ast.walk(ast.parse(last_code_cell(path))) if isinstance(node, ast.Assert)]
    assert len(found) >= 8
    for node in found:  # an assert on a constant cannot fail
        assert any(isinstance(part, ast.Name) for part in ast.walk(node.test)), ast.unparse(node)


@by_name
def test_notebook_honours_fast_and_says_its_versions_and_seeds(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 'FAST = os.environ.get("FAST") == "1"' in text
    assert "etr.__version__" in text and "torch.__version__" in text and "{SEEDS} seeds" in text


@by_name
def test_notebook_needs_no_other_server(path: Path) -> None:
    """Equations are Unicode: dollar math would load MathJax on the site."""
    prose = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    assert not [line for line in prose if "$" in line or "http" in line]
