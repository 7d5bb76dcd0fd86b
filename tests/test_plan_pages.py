"""`etr plan` as a user meets it, and docs/scaling.md against the record that is committed beside it."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etr.cli.plan import COMMANDS
from etr.errors import InputError
from etr.plan import Job, predict
from etr.plan.picture import around, plan_figure
from etr.plots.style import caption

DOCS = Path(__file__).parent.parent / "docs"
RECORD = json.loads((DOCS / "results/scaling.json").read_text())
CASES = {case["name"]: case for case in RECORD["cases"]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("etr_docs_scaling", DOCS / "results/scaling.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def tiny(folder: Path) -> str:
    config = {
        "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_command_prints_every_assumption_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"json": tmp_path / "plan.json", "png": tmp_path / "plan.png"}
    job = Job(tiny(tmp_path), gpus=8, micro_batch_tokens=64, prompts=8)
    COMMANDS["plan"](job, price_per_gpu_hour=2.0, **files)
    said = " ".join(capsys.readouterr().out.split())
    found = predict(job)
    assert all(name.split()[0] in said for name in found.assumed) and "assumed" in said
    assert "Best split" in said and "cost at 2 a GPU hour" in said
    written = json.loads(files["json"].read_text())
    assert written["derived"]["step"]["mid"] == pytest.approx(found.step.mid) and written["memory"]["fits"] is True
    assert files["png"].read_bytes().startswith(b"\x89PNG")


def test_the_picture_shows_the_step_and_the_cost(tmp_path: Path) -> None:
    found = around(predict(Job(tiny(tmp_path), gpus=8, micro_batch_tokens=64, prompts=8)))
    assert [one.job.gpus for one in found] == [1, 2, 4, 8, 16, 32, 64]
    figure = plan_figure(found, price=3.0)
    left, right = figure.axes
    assert right.lines[0].get_ydata() == pytest.approx([3 * one.hours.mid * one.job.gpus for one in found])
    assert left.lines[-1].get_ydata() == pytest.approx([one.step.mid for one in found])
    assert "not measured" in caption(figure) and right.get_title(loc="left") == "Cost"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"gpus": 0}, "gpus is 0; give at least 1"),
        ({"gpu": "h1000"}, "unknown GPU 'h1000'; did you mean 'h100'"),
        ({"model": "6.5b"}, "unknown model '6.5b'"),
        ({"engine_share": 1.0}, "engine_share is 1.0; give a share"),
        ({"engine_share": 0.5, "gpus": 1}, "needs at least 2 GPUs"),
        ({"response_tokens": 100, "longest_tokens": 50}, "longest is at least the mean"),
        ({"tensor_parallel": 16}, "only 8 GPUs sample"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"lora_rank": -1}, "lora_rank is -1; give 0 or more"),
    ],
)
def test_bad_input_is_one_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as raised:
        predict(Job(**wrong))
    assert said in str(raised.value) and "\n" not in str(raised.value)


def test_a_price_is_positive() -> None:
    with pytest.raises(InputError, match="give a positive number"):
        COMMANDS["plan"](Job(), price_per_gpu_hour=0.0)


# The page ------------------------------------------------------------------------------------------------------


def test_the_page_shows_the_record(script: ModuleType) -> None:
    assert script.tables(RECORD) in (DOCS / "scaling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["NeMo RL, Llama-3.1-8B, 16 H100", "verl, Qwen2.5-0.5B, 4 GH200"])
def test_the_record_is_what_the_code_predicts(name: str, script: ModuleType) -> None:
    found = script.seconds_of(predict(Job(**CASES[name]["job"])))
    for phase, row in CASES[name]["compared"].items():
        assert found[phase].mid == pytest.approx(row["mid"], rel=1e-6), "run docs/results/scaling.py again"


def test_the_published_numbers_are_those_of_the_script(script: ModuleType) -> None:
    assert {case.name: case.published for case in script.CASES} == {n: case["published"] for n, case in CASES.items()}


def test_every_stated_error_is_recomputed() -> None:
    rows = [row for case in [*CASES.values(), RECORD["own"]] for row in case["compared"].values()]
    for row in rows:
        assert row["error"] == pytest.approx(row["mid"] / row["published"] - 1)
        assert row["inside"] == (row["good"] <= row["published"] <= row["bad"])


def errors(start: str, fitted: bool) -> list[float]:
    cases = [case for name, case in CASES.items() if name.startswith(start) and bool(case["fitted"]) == fitted]
    return [row["error"] for case in cases for row in case["compared"].values()]


def test_the_sentences_of_the_page() -> None:
    nemo = errors("NeMo", fitted=False)
    assert len(nemo) == 7 and max(map(abs, nemo)) < 0.26
    assert all(row["inside"] for n, c in CASES.items() if n.startswith("NeMo") for row in c["compared"].values())
    small = CASES["verl, Qwen2.5-0.5B, 4 GH200"]["compared"]
    assert small["rollout"]["published"] / small["rollout"]["mid"] > 6
    assert all(small[phase]["published"] / small[phase]["mid"] > 2.5 for phase in ("scoring", "update"))
    fitted = [row for c in CASES.values() if c["fitted"] for row in c["compared"].values()]
    assert len(fitted) == 8 and sum(row["inside"] for row in fitted) == 5
    rollouts = [CASES[f"verl, 7B, {g} H20, 28K tokens"]["compared"]["rollout"]["error"] for g in (64, 128)]
    assert min(rollouts) > 1.5 and max(rollouts) < 2.2
    assert all(
        row["error"] < 0 for c in CASES.values() if c["fitted"] for p, row in c["compared"].items() if p == "scoring"
    )
    assert all(abs(row["error"]) < 0.2 for row in RECORD["own"]["compared"].values())
    assert abs(RECORD["ratio"]["error"]) < 0.01
    least: dict[bool, list[float]] = {False: [], True: []}
    for row in RECORD["smallest"]:
        least[bool(row["lora_rank"])].append(row["published"] / row["predicted"])
    assert least == {False: [1] * 5, True: [1, 2, 2, 2]}


def test_the_fewest_gpus_are_what_the_code_finds(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "SMALLEST", script.SMALLEST[:1])
    assert script.smallest() == RECORD["smallest"][:1]
