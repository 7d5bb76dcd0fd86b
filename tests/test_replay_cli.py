"""`etr replay` as a user meets it: a table, places, files, and one sentence for what has no record."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from records import recorded
from safetensors.torch import load_file
from scorecards import criteria, scorecard
from test_recorded import rewrite

from etr.cli import main
from etr.recipe import load_recipe
from etr.recorded import FILE
from etr.replays import paths
from etr.runs import RunFolder
from etr.validate import write_scorecard


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status and all that was printed, words not broken over lines."""
    try:
        status = main(("replay", *argv))
    except SystemExit as stop:
        status = int(str(stop.code))
    out = capsys.readouterr()
    return status, " ".join((out.out + out.err).split())


@pytest.fixture(autouse=True)
def wide_and_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("etr.cli.options.console._width", 250)
    monkeypatch.chdir(tmp_path)


def test_a_toy_run_replays(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--seeds", "3", "--iterations", "2", "--group-size", "4", "--no-cache")
    assert main(("toy", "--env", "tree-easy", *small, "--out", "t")) == 0
    capsys.readouterr()
    status, out = run(capsys, "t", "--path", "toy", "llm", "--json", "r.json", "--png", "r.png")
    assert status == 0 and out.count("bit-equal") == 3 and "recorded by toy" in out
    assert "are the same as at the time of the record" in out and "had moved by up to" in out
    written = json.loads(Path("r.json").read_text())
    assert written["agrees"] and [o["verdict"] for o in written["outcomes"]] == ["bit-equal"] * 3
    assert written["moved"] > 0 and Path("r.png").stat().st_size > 10_000


def test_a_comparison_has_no_record(capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--seeds", "3", "--iterations", "2", "--group-size", "4", "--no-cache")
    assert main(("compare", "etr", "grpo", "--env", "tree-easy", *small, "--out", "c")) == 0
    assert not Path("c", FILE).exists()


def test_a_disagreement_ends_with_1_and_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(load_recipe("etr"), Path("r"))
    gradient = load_file("r")["gradient"]
    gradient[1, 0] += 0.5
    rewrite(Path("r"), gradient=gradient)
    status, out = run(capsys, "r", "--path", "toy", "llm")
    assert status == 1 and out.count("differs") == 2
    assert "toy first disagreement: gradient at row 1, token 0: recorded " in out


def test_changed_code_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(load_recipe("etr"), Path("r"))
    rewrite(Path("r"), {"loss_hash": "0" * 64})
    status, out = run(capsys, "r", "--path", "llm")
    assert status == 1 and "are NOT those at the time of the record (000000000000)" in out
    assert run(capsys, "r", "--path", "llm", "--json", "r.json")[0] == 1
    written = json.loads(Path("r.json").read_text())
    assert not written["agrees"] and not written["same_code"] and written["outcomes"][0]["verdict"] == "bit-equal"


def test_the_scorecard_beside_or_above_is_held_against_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("etr")
    Path("p/run").mkdir(parents=True)
    recorded(recipe, Path("p/run", FILE))
    assert "nothing says whether this loss was validated" in run(capsys, "p/run", "--path", "llm")[1]
    for folder in (Path("p"), Path("p/run")):
        for changes, status, words, found in (
            ({}, 0, "is the validated one", True),
            ({"loss_hash": "1" * 64}, 1, "is NOT the validated one", False),
            ({"criteria": criteria(cost="fail")}, 1, "did NOT pass its scorecard", False),
            ({"criteria": criteria()[:1]}, 1, "does not stand for it", False),
        ):
            write_scorecard(folder, scorecard(recipe, **changes))
            code, out = run(capsys, "p/run", "--path", "llm", "--json", "r.json")
            assert code == status and words in out
            assert json.loads(Path("r.json").read_text())["validated"] == found
    Path("p/run/scorecard.json").write_text("{}")
    status, out = run(capsys, "p/run", "--path", "llm")
    assert status == 1 and "The scorecard cannot be used" in out


def test_wrong_inputs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(load_recipe("etr"), Path("r"))
    rewrite(Path("r"), rewards=1 - load_file("r")["rewards"])
    status, out = run(capsys, "r", "--path", "llm")
    assert status == 1 and "advantages differs: at [" in out and "Made again, and the same: denominator" in out


def test_a_policy_that_had_not_moved_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    recorded(load_recipe("etr"), Path("r"))
    rewrite(Path("r"), old_log_probs=load_file("r")["log_probs"].clone())
    status, out = run(capsys, "r", "--path", "llm")
    assert status == 1 and "the region decided nothing here" in out and "No token had a gradient" not in out
    rewrite(Path("r"), gradient=torch.zeros(16, 5), advantages=torch.zeros(16))
    assert "No token had a gradient" in run(capsys, "r", "--path", "llm")[1]


def test_hosts_that_are_missing_are_skipped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(load_recipe("etr"), Path("r"))

    def missing(name: str) -> None:
        host = name.split(".")[2]
        raise ModuleNotFoundError(f"No module named '{host}'", name=host)

    monkeypatch.setattr(paths, "importlib", SimpleNamespace(import_module=missing))
    status, out = run(capsys, "r")
    assert status == 0 and "verl skipped: verl is not installed" in out and "trl skipped: trl is not installed" in out
    status, out = run(capsys, "r", "--path", "verl")
    assert status == 2 and "no path could replay" in out and "add toy or llm to --path" in out


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create(Path("empty"), {"kind": "llm"}).close()
    Path("text").write_text("no record")
    recorded(load_recipe("etr"), Path("r"))
    for argv, words in (
        (("empty",), "'empty' holds no record of a batch (first_batch.safetensors); give a run of"),
        (("nowhere",), "there is no 'nowhere'"),
        (("text",), "'text' is no readable safetensors file"),
        (("r", "--path", "lm"), "unknown path 'lm'; did you mean 'llm'?"),
    ):
        status, out = run(capsys, *argv)
        assert status == 2 and out.startswith("etr: ") and words in out and "Traceback" not in out


def test_a_running_run_of_etr_replays_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """The record lies in the folder from its first update on."""
    RunFolder.create(Path("run"), {"kind": "llm"}).close()
    recorded(load_recipe("etr"), Path("run", FILE))
    assert run(capsys, "run", "--path", "toy")[0] == 0
