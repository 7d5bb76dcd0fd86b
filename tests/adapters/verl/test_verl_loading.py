"""How verl comes to know of the losses: by its environment variable, or as an installed plugin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("verl.protocol", reason="verl is not installed (make adapters)")

from etr.adapters.verl import installed
from etr.errors import InputError

REPOSITORY = Path(__file__).parents[3]
ASK = """
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
print("etr/gspo" in POLICY_LOSS_REGISTRY, "etr/group_zscore" in ADV_ESTIMATOR_REGISTRY, len(POLICY_LOSS_REGISTRY) > 40)
"""


def ask(path: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A new process that imports verl."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("VERL_", "ETR_"))}
    where = {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(path)])}
    command = [sys.executable, "-W", "ignore", "-c", ASK]
    return subprocess.run(command, env=inherited | where | variables, capture_output=True, text=True)


def test_by_the_environment_variable(tmp_path):
    assert ask(tmp_path, VERL_USE_EXTERNAL_MODULES="etr.adapters.verl").stdout == "True True True\n"
    assert ask(tmp_path, VERL_USE_EXTERNAL_PLUGINS="none").stdout == "False False False\n"


@pytest.mark.skipif(not (installed.version() or "").startswith("0.9"), reason="plugins came with verl 0.9")
def test_as_an_installed_plugin(tmp_path):
    about = tmp_path / "named-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: named\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[verl.plugins]\nnamed = etr.adapters.verl\n")
    assert ask(tmp_path).stdout == "True True True\n"


def test_a_missing_recipe_stops_the_process_with_one_sentence(tmp_path):
    found = ask(tmp_path, VERL_USE_EXTERNAL_MODULES="etr.adapters.verl", ETR_RECIPE=str(tmp_path / "recipe.yaml"))
    assert found.returncode != 0
    assert "ETR_RECIPE: " in found.stderr and "every machine of the run must see this file" in found.stderr


def test_versions_outside_the_tested_range(monkeypatch):
    monkeypatch.setattr(installed, "installed", lambda name: "0.6.0")
    with pytest.raises(InputError, match=r"verl 0.6.0 is older than .*, the oldest tested"):
        installed.require()
    monkeypatch.setattr(installed, "installed", lambda name: "0.10.0.dev0")
    with pytest.warns(UserWarning, match=r"verl 0.10.0.dev0 is newer than 0.9.1"):
        installed.require()
