"""The gate: every reason for which a recipe is not promoted, in its own words, and what --force leaves on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scorecards import criteria, put

import etr
from etr.cli import main
from etr.files import read_json
from etr.promote.gate import without_effect
from etr.recipe import load_recipe

OBJECTIVE = """from dataclasses import dataclass

from etr.objectives.grpo import GRPO


@dataclass(frozen=True)
class Mine(GRPO):
    care: float = 1.0

    def region(self, batch, log_ratio):
        region = super().region(batch, log_ratio)
        return region._replace(high=region.high * self.care)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence with which the command refuses; nothing may have been written."""
    assert main(["promote", *words, "--out", "new"]) == 2
    assert not Path("new").exists()
    message = capsys.readouterr().err
    assert message.startswith("etr: ") and message.count("\n") == 1
    return message


def promoted(*words: str) -> Path:
    assert main(["promote", *words, "--out", "new"]) == 0
    return Path("new")


# What the scorecard says ---------------------------------------------------------------------------------------


def test_no_scorecard(capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(capsys, "etr")
    assert "no scorecard 'runs/scorecards/etr/scorecard.json'" in message and "etr validate" in message
    assert "no scorecard 'other.json'" in refused(capsys, "etr", "--scorecard", "other.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"criteria": criteria(stale_data="fail")}, ["failed in", "stale-data: it breaks a law"]),
        ({"suite": "0"}, ["suite 0"]),
        ({"quick": True}, ["--quick"]),
        ({"loss_hash": "0" * 64}, ["it was edited"]),
    ],
)
def test_a_scorecard_that_is_no_evidence(
    capsys: pytest.CaptureFixture[str], changes: dict[str, object], words: list[str]
) -> None:
    put(load_recipe("etr"), **changes)
    message = refused(capsys, "etr")
    assert all(word in message for word in words) and "laws:" not in message


def test_other_fields_and_other_optimiser_settings(capsys: pytest.CaptureFixture[str]) -> None:
    put(load_recipe("etr"))
    message = refused(capsys, "etr", "--set", "micro=0.3")
    assert "micro is 0.3, but was 0.5" in message
    promoted("etr", "--set", "optimizer.lr=1e-5", "optimizer.updates=3")  # learning rates do not travel


def test_code_that_changed_since(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe("etr")
    put(recipe)
    changed = {"etr.regions": "0" * 64}
    monkeypatch.setattr("etr.validate.scorecard.loss_sources", lambda r: {**etr_sources(r), **changed})
    assert "code of the loss has changed since (etr.regions)" in refused(capsys, "etr")


def etr_sources(recipe: etr.recipe.Recipe) -> dict[str, str]:
    from etr.provenance import loss_sources

    return loss_sources(recipe)


def test_another_torch_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    put(load_recipe("etr"), versions={"torch": "1.0.0"})
    folder = promoted("etr")
    assert "validated with torch 1.0.0" in capsys.readouterr().out
    assert "validated with torch 1.0.0" in (folder / "README.md").read_text()
    assert "1.0.0" in read_json(folder / "promotion.json")["warnings"][0]


# Settings without effect ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("optimizer.updates=1", "the ratio is always 1"),
        ("updates=1", "the ratio is always 1"),
        ("optimizer.lr=0", "the policy never moves"),
        ("optimizer.max_grad_norm=0", "the policy never moves"),
    ],
)
def test_settings_under_which_clipping_does_nothing(
    capsys: pytest.CaptureFixture[str], setting: str, word: str
) -> None:
    put(load_recipe("etr"))
    assert word in refused(capsys, "etr", "--set", setting)


def test_a_region_that_nothing_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("grpo", {"eps_low": 1.0, "eps_high": 1e6})
    put(recipe)
    assert "no ratio leaves it" in refused(capsys, "grpo", "--set", "eps_low=1.0", "eps_high=1e6")


def test_one_update_is_fine_without_a_region() -> None:
    recipe = load_recipe("reinforce", {"optimizer.updates": 1})
    put(recipe)
    assert without_effect(recipe) == []
    promoted("reinforce", "--set", "optimizer.updates=1")


@pytest.mark.parametrize("name", etr.list_objectives())
def test_no_objective_is_refused_at_its_own_settings(name: str) -> None:
    assert without_effect(load_recipe(name)) == []


# What --force leaves on record ---------------------------------------------------------------------------------


def test_force_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    folder = promoted("etr", "--set", "updates=1", "--force")
    record = read_json(folder / "promotion.json")
    assert len(record["refused"]) == 2 and record["scorecard"] is None
    assert "no scorecard" in record["refused"][0] and "ratio is always 1" in record["refused"][1]
    assert record["promoted"] and len(record["loss_hash"]) == 64 and "etr.loss" in record["loss_sources"]
    assert "did not pass the gate" in (folder / "README.md").read_text()
    assert not (folder / "scorecard.json").exists() and "`scorecard.json`" not in (folder / "README.md").read_text()
    capsys.readouterr()
    assert main(["start", str(folder), "--check"]) == 0
    assert capsys.readouterr().out.count("forced through the gate") == 2


def test_without_force_the_scorecard_travels() -> None:
    path = put(load_recipe("etr"))
    folder = promoted("etr")
    assert "`scorecard.json`" in (folder / "README.md").read_text()
    assert (folder / "scorecard.json").read_bytes() == path.read_bytes()
    record = read_json(folder / "promotion.json")
    assert record["refused"] == [] and record["scorecard"]["loss_hash"] == record["loss_hash"]


# What a host cannot do, forced or not --------------------------------------------------------------------------

VERL = ("--to", "verl", "--model", "/models/x", "--gpus", "4", "--prompts", "8")
TRL = ("--to", "trl", "--model", "tiny-random", "--task", "copy", "--prompts", "4")


@pytest.mark.parametrize(
    ("recipe", "words", "expected"),
    [
        ("etr", ("--to", "verl", "--model", "/models/x"), "give --gpus"),
        ("etr", ("--to", "verl", "--model", "toy-llama", "--gpus", "1"), "'toy-llama' is neither"),
        ("etr", (*VERL, "--prompts", "3", "--group-size", "3"), "4 GPUs cannot share equally"),
        ("etr", (*VERL, "--refills", "2"), "--refills is not translated for verl"),
        ("etr", (*VERL, "--task-options", "reward_weights", "a=1"), "reward_weights are read by our own trainer only"),
        ("etr", (*VERL, "--host-set", "actor_rollout_ref.actor.ppo_epochs=1"), "follows from optimizer.updates"),
        ("etr", (*VERL, "--host-set", "actor_rollout_ref.actor=x"), "follows from"),
        ("etr", (*VERL, "--host-set", "nonsense"), "write KEY=VALUE"),
        ("etr", (*VERL, "--set", "correction.reject=k3"), "out of the denominator"),
        ("etr", (*VERL, "--set", "correction.kind=is"), "no counterpart in verl"),
        ("etr", (*VERL, "--set", "correction.kind=tis", "correction.normalize=true"), "another mean in verl"),
        ("etr", (*VERL, "--set", "correction.sequence_mask=0.5"), "no counterpart in verl"),
        ("etr", (*VERL, "--set", "optimizer.method=sgd", "optimizer.lr=0.1"), "AdamW only"),
        ("etr", (*VERL, "--set", "aggregation=local-token-mean"), "no aggregation 'local-token-mean'"),
        ("m2po", VERL, "the batch that it compares"),
        ("siren", VERL, "siren"),
        ("siren", TRL, "needs"),
        ("etr", (*TRL, "--nodes", "2"), "one node"),
        ("etr", (*TRL, "--gpus", "3"), "3 processes cannot share equally"),
        ("etr", (*TRL, "--gpus", "2", "--device", "cpu"), "contradict"),
        ("etr", (*TRL, "--engine", "http://x"), "not for TRL"),
        ("etr", (*TRL, "--host-set", "num_iterations=1"), "follows from optimizer.updates"),
        ("etr", ("--nodes", "2"), "one node"),
        ("etr", ("--gpus", "3"), "cannot be shared by 3 GPUs"),
        ("etr", ("--gpus", "-1"), "at least 0"),
        ("etr", ("--steps", "0"), "steps is 0"),
        ("etr", ("--host-set", "a=b"), "for other people's trainers"),
        ("siren", (), "needs"),
        ("nothing", (), "unknown recipe"),
    ],
)
def test_what_a_host_cannot_do(
    capsys: pytest.CaptureFixture[str], recipe: str, words: tuple[str, ...], expected: str
) -> None:
    assert expected in refused(capsys, recipe, *words, "--force")


def test_a_folder_that_is_not_empty(capsys: pytest.CaptureFixture[str]) -> None:
    Path("new").mkdir()
    Path("new/mine.txt").write_text("keep")
    assert main(["promote", "etr", "--force", "--out", "new"]) == 2
    assert "not empty" in capsys.readouterr().err and [p.name for p in Path("new").iterdir()] == ["mine.txt"]


# A user's own code ---------------------------------------------------------------------------------------------


def test_own_files_travel_and_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_gate_file.py").write_text(OBJECTIVE)
    Path("my_gate_reward.py").write_text("def graded(prompt, completion, answer):\n    return 1.0\n")
    recipe = load_recipe("my_gate_file.py:Mine", {"care": 0.9})
    put(recipe)
    words = ("my_gate_file.py:Mine", "--set", "care=0.9", "--reward", "my_gate_reward.py:graded")
    folder = promoted(*words)
    assert (folder / "my_gate_file.py").read_text() == OBJECTIVE
    assert "name: my_gate_file.py:Mine" in (folder / "recipe.yaml").read_text()
    assert "reward: my_gate_reward.py:graded" in (folder / "train.yaml").read_text()
    Path("my_gate_file.py").write_text("broken(")  # the run has its own copy
    assert main(["start", str(folder), "--check"]) == 0
    (folder / "my_gate_file.py").write_text(OBJECTIVE.replace("self.care", "-self.care"))
    capsys.readouterr()
    assert main(["start", str(folder), "--check"]) == 2
    assert "my_gate_file.py' is not the file that was promoted" in capsys.readouterr().err


def test_a_folder_of_modules_must_be_installed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my_gate_pkg").mkdir()
    Path("my_gate_pkg/__init__.py").write_text("")
    Path("my_gate_pkg/inner.py").write_text(OBJECTIVE)
    message = main(["promote", "my_gate_pkg.inner:Mine", "--force", "--out", "new"]), capsys.readouterr().err
    assert message[0] == 2 and "not installed, and only single files travel" in message[1]
    assert not Path("new").exists()


def test_a_reward_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "check the path" in refused(capsys, "etr", "--force", "--reward", "nowhere.py:f")


# The start -----------------------------------------------------------------------------------------------------


def test_the_start_refuses_other_code(capsys: pytest.CaptureFixture[str]) -> None:
    folder = promoted("etr", "--force")
    record = read_json(folder / "promotion.json")
    record["loss_hash"], record["loss_sources"]["etr.surrogates"] = "0" * 64, "0" * 64
    (folder / "promotion.json").write_text(json.dumps(record))
    assert main(["start", str(folder), "--check"]) == 2
    assert "etr.surrogates changed" in capsys.readouterr().err


def test_the_start_says_when_settings_were_edited(capsys: pytest.CaptureFixture[str]) -> None:
    folder = promoted("etr", "--force")
    assert main(["start", str(folder), "--check"]) == 0 and "edited" not in capsys.readouterr().out
    path = folder / "train.yaml"
    path.write_text(path.read_text().replace("prompts: 4", "prompts: 5"))
    assert main(["start", str(folder), "--check"]) == 0
    assert "train.yaml' was edited since the promotion" in capsys.readouterr().out


def test_the_start_refuses_broken_settings(capsys: pytest.CaptureFixture[str]) -> None:
    folder = promoted("etr", "--force")
    (folder / "train.yaml").write_text("- nothing\n")
    assert main(["start", str(folder)]) == 2
    assert "holds no settings of a run" in capsys.readouterr().err
    (folder / "recipe.yaml").unlink()
    assert main(["start", str(folder)]) == 2
    assert "recipe.yaml' is not the file that was promoted" in capsys.readouterr().err


def test_the_start_refuses_what_is_no_promoted_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", "."]) == 2
    assert "no promoted folder" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "package"), [(VERL, "verl"), (TRL, "trl")])
def test_the_start_needs_the_host(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], package: str
) -> None:
    folder = promoted("etr", *words, "--force")
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None)
    assert main(["start", str(folder), "--check"]) == 2
    assert f"{package} is not installed here; pip install '{package}>=" in capsys.readouterr().err
