"""The command line as a user meets it: what it prints, what it leaves, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet
import pytest
import yaml

import etr
from etr.cli import main
from etr.cli.options import parse_assignments, parse_grid
from etr.errors import InputError
from etr.runs import RunFolder

SMALL = ("--seeds", "4", "--iterations", "6", "--group-size", "4")


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command; words are not broken over lines."""
    status = main(argv)
    out = capsys.readouterr()
    return status, " ".join(out.out.split()), " ".join(out.err.split())


@pytest.fixture(autouse=True)
def wide_and_clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A wide terminal, so that tables do not wrap, and a folder of its own for every test."""
    monkeypatch.setattr("etr.cli.options.console._width", 250)
    monkeypatch.chdir(tmp_path)


def test_list_names_every_objective_with_its_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "list")
    assert status == 0
    for word in ("etr", "grpo_wide", "2601.03723", "reconstructed", "verified"):
        assert word in out


def test_list_can_be_narrowed(capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "list", "--category", "entropy", "--needs", "full_log_probs")[1]
    assert "lp_reg" in out and "siren" in out and "entropy_bonus" not in out and "grpo_wide" not in out
    assert "etr_implicit" in run(capsys, "list", "--paper", "2601.03723")[1]
    assert "Elastic" in run(capsys, "list", "--systems")[1] and "offline RL" in run(capsys, "list", "--systems")[1]
    status, _, error = run(capsys, "list", "--needs", "entrpy")
    assert status == 2 and "unknown input 'entrpy'; did you mean 'entropy'?" in error
    status, _, error = run(capsys, "list", "--paper", "no such paper")
    assert status == 2 and "no objective is like that; drop one of --category, --needs, --paper" in error


def test_show_draws_a_card(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "Wrote" in run(capsys, "show", "clip_cov", "--png", str(tmp_path / "card.png"))[1]
    assert (tmp_path / "card.png").stat().st_size > 10_000
    status, _, error = run(capsys, "show", "grpo", "--png", str(tmp_path / "missing" / "card.png"))
    assert status == 2 and "card.png" in error


def test_all_objectives_in_one_table(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etr, "list_objectives", lambda: ["etr", "ghpo", "grpo"])
    words = ("--all", "--seeds", "4", "--iterations", "3", "--no-cache", "--out", str(tmp_path / "all.json"))
    out = run(capsys, "compare", *words)[1]
    assert "All objectives" in out and "needs" in out
    rows = json.loads((tmp_path / "all.json").read_text())["rows"]
    status, _, error = run(capsys, "compare", "--all", "--set", "eps_low=0.1")
    assert status == 2 and "--all compares all objectives at their defaults; leave out --set" in error
    assert len(rows) == 3 * 2 * 3 and {row["recipe"] for row in rows} == {"etr", "ghpo", "grpo"}


def test_show_prints_equation_fields_and_reduction(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, "show", "etr")
    assert "clamp(ε·micro_i·macro_i, ε_min, ε_max)" in out
    assert "Equals grpo at micro=0.0, macro=0.0." in out
    assert "Needs: group." in out
    assert "Breaks the law 'finite_differences' by design" in run(capsys, "show", "cispo")[1]
    assert re.search(r" grpo \d+% π_old ", run(capsys, "show", "grpo")[1])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_status:
        main(["train", "--help"])
    assert exit_status.value.code == 0
    out = capsys.readouterr().out
    for text in ("--group-size", "Completions sampled for each prompt", "etr train --resume", "--recipe"):
        assert text in out


def test_compare_leaves_a_whole_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    envs = ("--env", "bandit-fixed-gap", "tree-easy")
    status, out, _ = run(capsys, "compare", "etr", "grpo", *SMALL, *envs, "--out", "here")
    assert status == 0
    assert "Probability of improvement" in out and "etr > grpo" in out and "here/report.html" in out
    assert "Paired differences" in out and "etr - grpo" in out and "not reached" in out
    folder = Path("here")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["recipes"][0]["objective"]["micro"] == 0.5
    assert json.loads((folder / "environment.json").read_text())["packages"]["torch"]
    summary = json.loads((folder / "comparison.json").read_text())
    for part in ("rows", "improvement", "differences"):
        assert {row["env"] for row in summary[part]} == {"bandit-fixed-gap", "tree-easy", "all"}
    assert len((folder / "results.jsonl").read_text().splitlines()) == 2 * 2 * 4
    assert pyarrow.parquet.read_table(folder / "results.parquet").num_rows == 2 * 2 * 4
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".json"}
    page = (folder / "report.html").read_text()
    assert "data:image/png;base64," in page and 'src="http' not in page


def test_toy_changes_recipe_fields(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _ = run(
        capsys, "toy", "--recipe", "grpo", "--env", "bandit-near-tie", *SMALL, "--out", "x",
        "--set", "eps_high=0.3", "optimizer.lr=1e-2", "optimizer.updates=2", "advantage=group_center",
    )  # fmt: skip
    assert status == 0
    recipe = yaml.safe_load(Path("x/config.yaml").read_text())["recipes"][0]
    assert recipe["objective"]["eps_high"] == 0.3
    assert recipe["optimizer"] == {
        "method": "adam", "lr": 0.01, "updates": 2, "micro_batches": None, "max_grad_norm": 1.0, "weight_decay": 0.0,
    }  # fmt: skip
    assert recipe["advantage"] == "group_center"


def test_sweep_prints_the_best_cells_and_leaves_tables_and_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    grid = ("--grid", "eps_high=0.1,0.4", "optimizer.lr=0.05,0.3")
    status, out, _ = run(capsys, "sweep", "grpo", *grid, "--env", "bandit-fixed-gap", *SMALL, "--out", "s")
    assert status == 0
    first = out.index("lr=0.3")  # six times the step: the best cells after six iterations
    assert out.index("Best cells") < first < out.index("lr=0.05") < out.index("Main effect of each field")
    assert {path.name for path in Path("s/figures").glob("*.png")} == {"map.png", "effects.png"}
    table = pyarrow.parquet.read_table("s/results.parquet")
    assert table.num_rows == 4 * 4 and {"eps_high", "optimizer.lr", "seed", "final_score"} <= set(table.column_names)
    assert len(json.loads(Path("s/sweep.json").read_text())["cells"]) == 4
    assert "lr=0.3" in Path("s/report.html").read_text()


def test_a_random_sweep_goes_on_where_it_was(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("sweep", "grpo", "--random", "3", "--ranges", "eps_high=0.1:0.5", "optimizer.updates=1,2", *SMALL)
    assert run(capsys, *argv, "--out", "one")[0] == 0
    monkeypatch.setattr("etr.toy.cache.train_together", lambda *_: pytest.fail("it trained again"))
    assert run(capsys, *argv, "--out", "two")[0] == 0
    assert Path("one/results.jsonl").read_text() == Path("two/results.jsonl").read_text()
    with pytest.raises(pytest.fail.Exception, match="it trained again"):
        run(capsys, *argv, "--out", "three", "--no-cache")


def test_report_works_on_a_folder_of_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert run(capsys, "toy", *SMALL, "--env", "tree-easy", "--out", f"all/{name}")[0] == 0
    status, out, _ = run(capsys, "report", "all")
    assert status == 0 and "all/report.html" in out
    assert Path("all/report.html").read_text().count("tree-easy") > 1


def test_check_runs_the_laws_on_a_users_own_module(capsys: pytest.CaptureFixture[str]) -> None:
    header = "from dataclasses import dataclass\nfrom etr.objectives.grpo import GRPO\n@dataclass(frozen=True)\n"
    Path("mine.py").write_text(header + "class Fine(GRPO):\n    eps_high: float = 0.3\n")
    Path("his.py").write_text(
        header + "class Flipped(GRPO):\n    def surrogate(self, *a):\n        return -super().surrogate(*a)\n"
    )
    assert run(capsys, "check", "mine:Fine")[0] == 0
    assert run(capsys, "check", "mine.py:Fine")[0] == 0
    status, out, err = run(capsys, "check", "his:Flipped")
    assert status == 2
    assert "must equal A" in out
    assert "his:Flipped breaks" in err and "on_policy" in err and "mend the objective" in err


def test_bench_prints_ratios_and_writes_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from etr.bench import loss, toy

    monkeypatch.setattr("etr.cli.bench._pin", lambda threads: None)  # the other tests keep their cores
    monkeypatch.setattr(toy.bench_toy, "__defaults__", (2, 2, 1))
    monkeypatch.setattr(toy, "OURS", {"etr": {}})
    for slow in ("bench_growth", "bench_memory"):
        monkeypatch.setattr(toy, slow, lambda: [{"doubled": "runs", "x1": 1.0}])
    monkeypatch.setattr(loss.bench_loss, "__defaults__", (4, 8, 1))
    assert "gymnasium step loop" in run(capsys, "bench", "toy", "--json", "toy.json")[1]
    assert "ratio to hand-written" in run(capsys, "bench", "loss", "--json", "loss.json")[1]
    written = json.loads(Path("toy.json").read_text())
    (speed,) = (rows for title, rows in written.items() if title.startswith("speed"))
    assert {"etr", "gymnasium step loop"} <= {row["what"] for row in speed}
    assert all(row["run-iterations/s"] > 0 for row in speed)
    assert written["environment"]["packages"]["torch"]
    (rows,) = (rows for title, rows in json.loads(Path("loss.json").read_text()).items() if title.startswith("loss"))
    assert {row["objective"] for row in rows} >= {"hand-written", "etr"}


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["show", "grp"], ["unknown recipe 'grp'", "did you mean 'grpo'", "module:Class"]),
        (["toy", "--env", "bandit-spred"], ["unknown", "bandit-spred", "bandit-spread"]),
        (["toy", "--set", "mirco=0.3"], ["unknown field", "mirco", "did you mean 'micro'"]),
        (["toy", "--set", "micro"], ["--set got 'micro'", "field=value"]),
        (["toy", "--set", "micro=big"], ["ETR.micro is 'big'", "give a number"]),
        (["toy", "--set", "optimizer.lr=-1"], ["optimizer.lr is -1", "at least 0"]),
        (["toy", "--set", "sampler.x=1"], ["unknown recipe section", "sampler"]),
        (["toy", "--recipe", "missing.yaml"], ["missing.yaml does not exist"]),
        (["toy", "--recipe", "no_such_module:X"], ["no_such_module", "run the command in the folder"]),
        (["toy", "--group-size", "1"], ["group_size is 1", "at least 2"]),
        (["toy", "--iterations", "0"], ["iterations is 0", "at least 1"]),
        (["compare", "--seeds", "2"], ["seeds is 2", "at least 3"]),
        (["compare", "--level", "2"], ["level is 2", "up to 1"]),
        (["compare", "nowhere.py:Mine", "grpo"], ["there is no file 'nowhere.py'"]),
        (["sweep", "etr"], ["--grid field=value,value or --random N", "give one of them"]),
        (["sweep", "etr", "--grid", "micro"], ["--grid got 'micro'", "field=value,value"]),
        (["sweep", "etr", "--grid", "mirco=0,1"], ["unknown field", "did you mean 'micro'"]),
        (["sweep", "etr", "--grid", "micro=0", "--random", "3"], ["give one of them"]),
        (["sweep", "etr", "--random", "3", "--ranges", "micro=0:x"], ["--ranges got 'micro=0:x'", "low:high:log"]),
        (["sweep", "etr", "--random", "3", "--ranges", "micro=1:0"], ["give low < high"]),
        (["sweep", "etr", "--random", "3", "--ranges", "mirco=0:1"], ["unknown field", "did you mean 'micro'"]),
        (["sweep", "etr", "--random", "3", "--ranges", "micro"], ["--ranges got 'micro'"]),
        (["sweep", "etr", "--random", "-3", "--ranges", "micro=0:1"], ["--random is -3; give at least 1"]),
        (["sweep", "etr", "--random", "3", "--ranges", "lr=0:1", "optimizer.lr=0:2"], ["--ranges", "one field"]),
        (["sweep", "etr", "--random", "3", "--ranges", "lr=0:1", "optimizer.lr=0,2"], ["--ranges", "one field"]),
        (["sweep", "etr", "--grid", "micro=0.1,"], ["--grid got 'micro=0.1,'", "field=value,value"]),
        (["sweep", "etr", "--grid", "lr=0.1", "optimizer.lr=0.2"], ["'lr' and 'optimizer.lr'", "give it once"]),
        (["sweep", "etr", "--grid", "micro=0,7"], ["ETR.micro is 7"]),
        (["sweep", "etr", "--grid", "micro=0", "--env", "bandit", "bandit-spread"], ["one environment; name it once"]),
        (["compare", "--env", "bandit", "bandit-spread"], ["'bandit' and 'bandit-spread' are one environment"]),
        (["compare", "etr", "etr"], ["different names"]),
        (["compare", "--policy", "prefx"], ["unknown policy", "did you mean 'prefix'"]),
        (["toy", "--set", "optimizer.micro_batches=1000"], ["optimizer.micro_batches is 1000"]),
        (["compare", "__init__.py"], ["there is no file '__init__.py'"]),
        (["toy", "--set", "beta=0.1", "--recipe", "cispo"], ["unknown field", "beta"]),
        (["report", "nowhere"], ["nowhere"]),
        (["train", "--model", "tiny-random", "--task", "arithmetix"], ["unknown task", "arithmetic"]),
        (["train", "--model", "./no-such-folder"], ["no-such-folder", "does not exist"]),
        (["train", "--resume", "nowhere"], ["nowhere"]),
        (["train", "--group-size", "1"], ["group_size is 1"]),
        (["eval", "--model", "tiny-random", "--task", "missing.jsonl"], ["missing.jsonl"]),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(argv: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, *argv)
    assert status == 2
    assert err.startswith("etr: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err
    assert not list(Path().glob("runs/*/config.yaml"))  # nothing was begun


def test_an_existing_run_is_not_touched(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ("toy", "--env", "tree-easy", *SMALL, "--out", "kept")
    assert run(capsys, *argv)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*")}
    status, _, err = run(capsys, *argv)
    assert status == 2 and "already holds a run" in err and "--overwrite" in err
    assert before == {path: path.stat().st_mtime_ns for path in Path("kept").rglob("*")}
    assert run(capsys, *argv, "--overwrite")[0] == 0


@pytest.mark.parametrize("command", [("toy",), ("compare", "grpo"), ("sweep", "grpo", "--grid", "eps_high=0.1,0.2")])
def test_an_unfinished_run_is_begun_again_in_its_folder(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = (*command, "--env", "tree-easy", *SMALL, "--out", "kept")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    module = "etr.cli.sweep" if command[0] == "sweep" else "etr.cli.toy"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.save", stop)
        assert run(capsys, *argv)[0] == 130
    assert Path("kept/config.yaml").exists() and run(capsys, *argv)[0] == 0
    status, _, err = run(capsys, *argv)
    assert status == 2 and "choose another --out or add --overwrite" in err and "--resume" not in err


def test_another_kind_of_run_is_never_begun_again(capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create(Path("kept"), {"kind": "llm"}).close()
    assert run(capsys, "toy", *SMALL, "--out", "kept")[0] == 2
    assert "llm" in Path("kept/config.yaml").read_text()


def test_a_file_without_a_class_is_asked_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    text = "from etr.objectives.grpo import GRPO\nclass Mine(GRPO):\n    pass\nclass Other(GRPO):\n    pass\n"
    Path("a_file_of_mine.py").write_text(text)
    status, _, err = run(capsys, "compare", "a_file_of_mine.py", "grpo")
    assert status == 2 and "write a_file_of_mine.py:Class; it has Mine, Other" in err


def test_a_folder_that_cannot_be_written_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    status, _, err = run(capsys, "toy", *SMALL, "--out", "file/run")
    assert status == 2 and "file/run" in err


def test_assignments_need_a_field_and_a_value() -> None:
    assert parse_assignments(["a=1", "b=none-such", "c=true"]) == {"a": 1, "b": "none-such", "c": True}
    with pytest.raises(InputError, match="field=value"):
        parse_assignments(["=1"])


@pytest.mark.parametrize("pair", [("lr", "optimizer.lr"), ("objective.micro", "micro"), ("micro", "micro")])
def test_a_field_is_given_once(pair: tuple[str, str]) -> None:
    texts = [f"{name}=1" for name in pair]
    for read in (parse_assignments, parse_grid):
        with pytest.raises(InputError, match="one field; give it once"):
            read(texts)
    assert parse_assignments(["objective.x=1", "optimizer.x=2"]) == {"objective.x": 1, "optimizer.x": 2}


def test_the_installed_command_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "etr", "list"], capture_output=True, text=True, check=True)
    assert "grpo" in done.stdout
