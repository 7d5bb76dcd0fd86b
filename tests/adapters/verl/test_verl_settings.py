"""What a launch script is given, without verl."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import etr
from etr.adapters.verl_names import named, names
from etr.adapters.verl_settings import CARRIED, TESTED, carries, check_version, environment, overrides, runnable
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import load_recipe

OWN = """
from dataclasses import dataclass
from etr.objectives.etr import ETR

@dataclass(frozen=True)
class Mine(ETR):
    half: float = 0.5
"""


def test_it_needs_no_verl():
    code = "import sys, etr.adapters.verl_settings; print([m for m in ('verl', 'ray') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_route_follows_what_the_objective_needs():
    assert not carries(etr.get("etr"), binary_rewards=True)
    assert carries(etr.get("etr"), binary_rewards=False)
    assert carries(etr.get("etr", normalize_budget=True), binary_rewards=True)  # a mean over the whole batch
    assert not carries(etr.get("bandpo"), binary_rewards=False)  # its columns are each token's own
    assert environment(load_recipe("etr"), binary_rewards=True) == {"VERL_USE_EXTERNAL_MODULES": "etr.adapters.verl"}
    assert environment(load_recipe("etr"), binary_rewards=False)["VERL_USE_EXTERNAL_MODULES"].endswith(".trainer")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bnpo", "verl has no aggregation 'local-token-mean'"),
        ("m2po", "its micro-batches would cut the batch that it compares"),
        ("real", "its micro-batches would cut the group"),
        ("entropy_bonus", "needs the policy's entropy per token .* which verl does not have"),
        ("lp_reg", "log-probs of the whole vocabulary"),
        ("adaptive_kl", "has a state, which verl's checkpoints would lose"),
        ("ghpo", "the first tokens of right answers"),
    ],
)
def test_what_verl_cannot_do_is_refused_before_launch(name, message):
    for ask in (overrides, environment):
        with pytest.raises(InputError, match=message):
            ask(load_recipe(name), binary_rewards=True)
    assert not runnable(name)


class Stateful(Objective):
    """Reads nothing but what every loss gets, and keeps a number from step to step."""

    def init_state(self, run_shape, device):
        return {"eps": torch.full(run_shape, 0.2, device=device)}


def test_a_state_is_refused_on_the_registry_route_too():
    with pytest.raises(InputError, match=r"has a state, which verl's checkpoints would lose"):
        carries(Stateful(), binary_rewards=True)


def test_most_objectives_have_a_route():
    with_route = [name for name in etr.list_objectives() if runnable(name)]
    assert len(with_route) >= 50
    assert all(etr.get(name).needs <= CARRIED for name in with_route)


def test_values_are_written_as_hydra_reads_them():
    lines = dict(line.split("=", 1) for line in overrides(load_recipe("grpo", {"dual_clip": 3.0}), binary_rewards=True))
    fields = "+actor_rollout_ref.actor.policy_loss.fields"
    assert lines[f"{fields}.dual_clip"] == "3.0" and lines[f"{fields}.aggregation"] == "seq-mean-token-mean"
    assert lines["algorithm.adv_estimator"] == "etr/grpo" and lines["algorithm.use_kl_in_reward"] == "false"
    plain = dict(line.split("=", 1) for line in overrides(load_recipe("grpo"), binary_rewards=False))
    assert plain[f"{fields}.dual_clip"] == "null"


def test_a_users_own_class_is_known_by_the_recipe_in_the_environment(tmp_path, monkeypatch):
    from etr.promote.recipes import write_recipe

    (tmp_path / "half_width.py").write_text(OWN)
    folder = tmp_path / "promoted"
    folder.mkdir()
    recipe = load_recipe(f"{tmp_path / 'half_width.py'}:Mine", {"half": 0.25})
    write_recipe(folder, recipe)
    assert "Mine" not in names()
    monkeypatch.setenv("ETR_RECIPE", str(folder / "recipe.yaml"))
    monkeypatch.chdir("/")
    assert "Mine" in names() and runnable("Mine")
    found = named("Mine")
    assert found.half == 0.25 and type(found).__name__ == "Mine"
    assert named("Mine", {"half": 0.25}) == found
    with pytest.raises(InputError, match=r"fields are not those of the recipe in ETR_RECIPE"):
        named("Mine", {"half": 0.5})
    with pytest.raises(InputError, match=r"unknown field of objective 'Mine'.*did you mean 'half'"):
        named("Mine", {"halv": 0.5})


def test_the_page_says_what_is_printed(capsys):
    page = (Path(__file__).parents[3] / "docs" / "howto" / "verl.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(code, {})
    printed = capsys.readouterr().out
    assert "VERL_USE_EXTERNAL_MODULES': 'etr.adapters.verl'" in printed and "fields.micro=0.3" in printed
    for line in printed.splitlines()[1:]:
        setting = line.partition("=")[0].rpartition(".")[2]
        assert setting in page or ".fields." in line or ".host." in line, setting


def test_versions():
    lowest, highest = TESTED
    check_version(lowest)
    check_version(highest)
    with pytest.raises(InputError, match=r"is older than"):
        check_version("0.6.1")
    with pytest.warns(UserWarning, match=r"is newer than"):
        check_version("0.12.0")


def test_without_verl_it_says_so(monkeypatch):
    from etr.adapters.verl import installed

    def missing(name):
        raise installed.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "installed", missing)
    assert installed.version() is None
    with pytest.raises(InputError, match=r"verl is not installed; pip install"):
        installed.require()
