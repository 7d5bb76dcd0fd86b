"""A new paper is one new file: everything else finds it by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "howto" / "add_a_paper.md"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The house with the file of the how-to page in it, and nothing else changed."""
    folder = tmp_path_factory.mktemp("house")
    for part in ("etr", "toy_envs", "tests", "docs/_ext"):
        shutil.copytree(HOUSE / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    (folder / "etr" / "objectives" / "careful_grpo.py").write_text(f'"""Careful GRPO: an example."""\n\n{code}')
    return folder


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_part_is_ten_lines() -> None:
    code = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[0]
    body = code[code.index("@register") :]
    assert len([line for line in body.splitlines() if line.strip()]) <= 10


@pytest.mark.slow
def test_the_laws_judge_it(copy: Path) -> None:
    out = run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_laws.py", "-k", "careful_grpo")
    assert int(re.findall(r"(\d+) passed", out)[0]) >= 14


@pytest.mark.slow
def test_the_command_line_and_the_cards_show_it(copy: Path) -> None:
    assert "careful_grpo" in run(copy, "-m", "etr", "list")
    assert "Equals grpo at care=1.0" in run(copy, "-m", "etr", "show", "careful_grpo")
    card = "import sys; sys.path[:0] = ['docs/_ext']; import cards; print(cards.card('careful_grpo'))"
    assert "Careful GRPO: an example." in run(copy, "-c", card)
