"""Ways around the gate, and starts that would fail: what is edited after a promotion, and what is given to a host."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scorecards import put

from etr.cli import main
from etr.corrections import Correction
from etr.errors import InputError
from etr.files import read_json
from etr.promote.quoting import hydra_text
from etr.promote.terms import Translation, with_own
from etr.promote.trl import check_types, own_values
from etr.promote.verl_correction import rollout_correction
from etr.recipe import load_recipe

VERL = ("--to", "verl", "--model", "/models/x", "--gpus", "4", "--prompts", "8")
TRL = ("--to", "trl", "--model", "tiny-random", "--task", "copy", "--prompts", "4")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hosts_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etr.promote.start.check_host", lambda host, folder, say: None)


def promoted(*words: str, out: str = "new") -> Path:
    assert main(["promote", "etr", *words, "--force", "--out", out]) == 0
    return Path(out)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a refusal."""
    capsys.readouterr()
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert message.startswith("etr: ") and message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("words", "own", "section"),
    [
        (VERL, "algorithm.rollout_correction.bypass_mode=true", "bypass_mode follows from"),
        (VERL, "+algorithm.rollout_correction.rollout_rs=token_k1", "rollout_rs follows from"),
        (VERL, "algorithm.rollout_correction.rollout_is_batch_normalize=true", "follows from"),
        (VERL, "algorithm.rollout_correction.loss_type=reinforce", "algorithm.rollout_correction is part of verl's"),
        (VERL, "algorithm/rollout_correction=bypass", "follows from"),
        (VERL, "x@actor_rollout_ref.actor.optim=sgd", "follows from"),
        (VERL, "algorithm.norm_adv_by_std_in_grpo=false", "norm_adv_by_std_in_grpo is part of"),
        (VERL, "actor_rollout_ref.actor.optim.betas=[0.5,0.9]", "actor.optim is part of"),
        (VERL, "++actor_rollout_ref.actor.policy_loss.ppo_kl_coef=1", "policy_loss is part of"),
        (TRL, "mask_truncated_completions=true", "mask_truncated_completions follows from"),
        (TRL, "warmup_steps=0.5", "warmup_steps follows from"),
        (TRL, "warmup_ratio=0.5", "warmup_ratio is part of TRL's".replace("TRL", "trl")),
        (TRL, "epsilon=0.5", "epsilon is part of"),
    ],
)
def test_no_setting_by_hand_makes_another_loss(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], own: str, section: str
) -> None:
    assert section in said(capsys, "promote", "etr", *words, "--force", "--host-set", own, "--out", "new")
    assert not Path("new").exists()


def test_other_settings_of_a_host_pass() -> None:
    translation = Translation([], reserved=("a.b",))
    assert with_own(translation, {"a.bc": "1", "a.c": "2"}, "verl").settings() == {"a.bc": "1", "a.c": "2"}


def test_values_for_trl_have_their_type() -> None:
    @dataclass
    class Config:
        flag: bool = False
        rate: float | None = 0.0
        count: int = 0
        text: str | dict[str, Any] = ""

    found = own_values({"flag": "false", "rate": "1e-6", "count": "3", "text": "{a: 1}"})
    assert found == {"flag": False, "rate": 1e-6, "count": 3, "text": {"a": 1}}
    check_types({**found, "rate": None}, Config)
    for wrong in ({"flag": "false"}, {"flag": 1}, {"count": True}, {"count": 1.5}, {"rate": "much"}):
        with pytest.raises(InputError, match=f"Config.{next(iter(wrong))} is .* and TRL wants"):
            check_types(wrong, Config)
    with pytest.raises(InputError, match="did you mean 'count'"):
        check_types({"coumt": 1}, Config)
    with pytest.raises(InputError, match="is not YAML"):
        own_values({"text": "{a"})


@pytest.mark.usefixtures("hosts_are_there")
@pytest.mark.parametrize(
    ("words", "file", "old", "new"),
    [
        (VERL, "overrides.sh", "bypass_mode=false", "bypass_mode=true"),
        (VERL, "overrides.sh", "OVERRIDES=(", "OVERRIDES=( actor_rollout_ref.actor.optim.betas='[0.1,0.9]'"),
        (TRL, "trl.yaml", "mask_truncated_completions: false", "mask_truncated_completions: true"),
        (TRL, "trl.yaml", "arguments:\n", "arguments:\n  epsilon: 0.4\n"),
    ],
)
def test_another_loss_by_editing_stops_the_start(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], file: str, old: str, new: str
) -> None:
    path = promoted(*words) / file
    assert main(["start", "new", "--check"]) == 0
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    assert "which is another loss" in said(capsys, "start", "new", "--check")


@pytest.mark.usefixtures("hosts_are_there")
@pytest.mark.parametrize("name", ["run.sh", "prepare_data.py", "trl.yaml"])
def test_edited_scripts_are_named(capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = promoted(*TRL) / name
    path.write_text(path.read_text() + "\n# mine\n")
    capsys.readouterr()
    assert main(["start", "new", "--check"]) == 0
    assert f"{name}' was edited since the promotion" in " ".join(capsys.readouterr().out.split())


def test_an_edited_scorecard_stops_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    put(load_recipe("etr"))
    path = promoted() / "scorecard.json"
    path.write_text(path.read_text().replace('"pass"', '"fail"'))
    assert "scorecard.json' is not the file that was promoted" in said(capsys, "start", "new", "--check")


@pytest.mark.parametrize(
    ("content", "words"),
    [("{}", "has no host"), ("[]", "has no host"), ('{"host": 3}', "has no host"), ("{", "not valid JSON")],
)
def test_a_broken_record_is_one_sentence(capsys: pytest.CaptureFixture[str], content: str, words: str) -> None:
    path = promoted() / "promotion.json"
    path.write_text(content)
    assert words in said(capsys, "start", "new")


def test_a_record_of_an_unknown_host(capsys: pytest.CaptureFixture[str]) -> None:
    path = promoted() / "promotion.json"
    path.write_text(json.dumps({**read_json(path), "host": "verll"}))
    assert "did you mean 'verl'" in said(capsys, "start", "new")


def spied(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An interpreter for run.sh that only writes down how it was called; returns its log."""
    spy, log = here / "spy", here / "log"
    spy.write_text(f'#!/usr/bin/env bash\nprintf "%s " "$@" >> {log}\necho >> {log}\n')
    spy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(spy))
    monkeypatch.delenv("PYTHON", raising=False)
    return log


def test_start_makes_all_processes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted("--model", "tiny-random", "--task", "copy", "--gpus", "2")
    log = spied(here, monkeypatch)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert main(["start", "new"]) == 0
    words = "-m torch.distributed.run --standalone --nproc-per-node 2 -m etr start ."
    assert log.read_text().split() == words.split()


def test_a_process_of_torchrun_trains_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    promoted("--model", "tiny-random", "--task", "copy", "--gpus", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("etr.cli.promote._run_script", lambda folder: pytest.fail("torchrun in torchrun"))
    monkeypatch.setattr("etr.llm.run.start", lambda *words: (_ for _ in ()).throw(InputError("it trains")))
    assert main(["start", "new"]) == 2


@pytest.mark.usefixtures("hosts_are_there")
def test_start_hands_its_own_interpreter_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    promoted(*TRL)
    log = spied(here, monkeypatch)
    assert main(["start", "new"]) == 0
    assert [line.split() for line in log.read_text().splitlines()] == [
        ["-m", "etr", "start", ".", "--check"], ["prepare_data.py"], ["-m", "etr.adapters.trl", "."]
    ]  # fmt: skip
    monkeypatch.setenv("PYTHON", "/nowhere/python")
    assert main(["start", "new"]) == 2  # a PYTHON that is set is obeyed


def test_the_folder_one_stands_in(here: Path) -> None:
    (here / "inside").mkdir()
    os.chdir(here / "inside")
    kept = (here / "inside").stat().st_ino
    promoted(out=".")
    assert (here / "inside").stat().st_ino == kept and Path("promotion.json").exists()
    assert main(["start", ".", "--check"]) == 0
    assert [path.name for path in here.iterdir()] == ["inside"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--task", "nosuch"), "nosuch"),
        (("--model", "/nosuch/model"), "no model folder '/nosuch/model'"),
        (("--model", "./nosuch"), "no model folder './nosuch'"),
        ((*VERL, "--model", "./nosuch"), "no model folder './nosuch'"),
        ((*VERL, "--task", "copy", "--prompts", "88"), "training questions, and verl wants at least --prompts 88"),
        ((*TRL, "--prompts", "88"), "training questions, and trl wants"),
    ],
)
def test_task_and_model_are_looked_at(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], expected: str
) -> None:
    assert expected in said(capsys, "promote", "etr", *words, "--force", "--out", "new")
    assert not Path("new").exists()


def test_a_model_of_another_machine_is_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    promoted(*VERL)
    assert "no '/models/x' on this machine" in (Path("new") / "README.md").read_text()
    promoted("--model", "owner/name", out="other")
    assert "ask the Hugging Face hub" in " ".join(capsys.readouterr().out.split())


def test_bounds_of_corrections_keep_their_digits() -> None:
    def threshold(**fields: float) -> object:
        terms = rollout_correction(Correction(kind="mis", **fields))  # type: ignore[arg-type]
        return next(term.value for term in terms if term.key.endswith("rollout_is_threshold"))

    assert threshold(low=0.12345678, high=9.87654321) == "0.12345678_9.87654321"
    with pytest.raises(InputError, match="low is 0"):
        threshold(low=0.0)


@pytest.mark.parametrize("name", ["it's", "back\\slash", "a${b}"])
def test_a_folder_that_hydra_cannot_name(capsys: pytest.CaptureFixture[str], here: Path, name: str) -> None:
    assert "choose another name" in said(capsys, "promote", "etr", *VERL, "--force", "--out", name)
    promoted(*VERL).rename(here / name)  # or moved there later
    done = subprocess.run(["bash", str(here / name / "run.sh")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("etr: ") and "move it" in done.stderr


@pytest.mark.parametrize("text", ["trailing\\", "a${oc.env:HOME}"])
def test_a_text_that_hydra_would_change(text: str) -> None:
    with pytest.raises(InputError, match="Hydra would read"):
        hydra_text(text)


def test_the_printed_command_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    promoted(out="my $folder")
    line = " ".join(capsys.readouterr().out.split())
    command = line.partition("start it with: ")[2].partition(" (or read")[0]
    assert shlex.split(command) == ["bash", "my $folder/run.sh"]
