"""The LLM benchmark compares like with like, says what it left out, and every part of it runs on small models."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from etr.bench import llm, llm_child, llm_growth, llm_process
from etr.bench.llm_work import NEVER, QUESTIONS, Size, Work, endless, random_model, vowels, write_questions
from etr.errors import InputError

TINY = Work("", prompts=2, group_size=2, tokens=4, iterations=1, dtype="float32", peer_rows=2)
SMALL = Size(vocabulary=64, hidden=16, layers=1, prompts=2, group_size=2, tokens=4, repeats=1)


def test_endless_changes_the_end_token_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, values in {
        "config.json": {"eos_token_id": 2, "hidden_size": 8},
        "generation_config.json": {"eos_token_id": 2},
        "tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        "tokenizer.json": {"added_tokens": [{"id": 2, "content": "<|im_end|>"}, {"id": 6, "content": NEVER}]},
    }.items():
        (source / name).write_text(json.dumps(values))
    (source / "model.safetensors").write_bytes(b"weights")
    folder = endless(source, tmp_path / "copy")
    read = {file.name: json.loads(file.read_text()) for file in folder.glob("*.json")}
    assert read["config.json"] == {"eos_token_id": 6, "hidden_size": 8}
    assert read["generation_config.json"] == {"eos_token_id": 6}
    assert read["tokenizer_config.json"] == {"eos_token": NEVER, "pad_token": "<|im_end|>"}
    assert (folder / "model.safetensors").is_symlink() and (folder / "model.safetensors").read_bytes() == b"weights"
    assert json.loads((source / "config.json").read_text())["eos_token_id"] == 2


def test_questions_differ_and_the_reward_needs_no_answer(tmp_path: Path) -> None:
    assert len(set(QUESTIONS)) == 64
    lines = write_questions(tmp_path / "q.jsonl", QUESTIONS[:2]).read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == list(QUESTIONS[:2])
    assert vowels("", "aei xyz", "-") == pytest.approx(3 / 7) and vowels("", "", "-") == 0


def result(*seconds: float, peak: int) -> dict[str, Any]:
    return {"iteration": list(seconds), "cpu": list(seconds), "rollout": [1.0] * 4, "tokens": [8] * 4, "peak": peak}


def test_rows_leave_the_first_iteration_out_and_compare_medians() -> None:
    said: list[str] = []
    ours, theirs = result(99, 2, 1, 3, peak=3 * 2**20), result(99, 8, 6, 10, peak=4 * 2**20)
    rows = llm.iteration_rows({"etr, transformers": ours, "etr, vllm": {"skipped": "gone"}, "trl": theirs}, said.append)
    assert [row["what"] for row in rows] == ["etr, transformers", "trl"] and said == ["etr, vllm is left out: gone"]
    assert (rows[0]["iteration s"], rows[0]["from"], rows[0]["to"], rows[0]["peak MiB"]) == (2, 1, 3, 3)
    assert (rows[0]["trl / it, time"], rows[0]["it / trl, peak"]) == (4, 0.75)
    alone = llm.iteration_rows({"etr, transformers": ours, "trl": {"skipped": "no trl"}}, said.append)
    assert len(alone) == 1 and "it / trl, peak" not in alone[0]


def test_growth_asks_for_each_size_once_and_compares_with_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Size] = []

    def child(what: str, size: Size, module: str) -> dict[str, float]:
        asked.append(size)
        return {"rollout": 0.5 * size.tokens, "update": float(size.group_size), "peak": float(size.vocabulary)}

    monkeypatch.setattr(llm_growth, "child", child)
    rows = llm_growth.bench_growth(SMALL, lambda text: None)
    assert len(asked) == len(set(asked)) == 7 and len(rows) == 9
    assert [row["update / first"] for row in rows if row["what"] == "group_size"] == [1, 2, 4]
    assert [row["rollout / first"] for row in rows if row["what"] == "tokens"] == [1, 2, 4]
    assert [row["peak / first"] for row in rows if row["what"] == "vocabulary"] == [1, 2, 4]
    assert rows[0]["rollout ms"] == 2000


def test_a_peer_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(llm_process.PEER_VARIABLE, raising=False)
    if importlib.util.find_spec("trl") is None:
        assert "has no trl" in llm_process.trl(TINY, None)["skipped"]
        assert sys.executable in llm_process.trl(TINY, sys.executable)["skipped"]
    with pytest.raises(InputError, match="cannot be run"):
        llm_process.trl(TINY, str(tmp_path / "nowhere"))


def test_a_contender_that_fails_is_left_out_with_its_last_words() -> None:
    found = llm_process._last_line([sys.executable, "-c", "raise SystemExit('no room left')"], 1)
    assert found == {"skipped": "it failed: no room left"}


@pytest.mark.slow
def test_an_iteration_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    random_model(SMALL, tmp_path / "model")
    found = llm_process.child("iteration", replace(TINY, model=str(tmp_path / "model")))
    assert len(found["iteration"]) == 2 and found["peak"] > 2**20 and found["tokens"][-1] > 0


def test_a_mistake_in_a_contender_is_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llm_child.main("iteration", json.dumps(vars(replace(TINY, model=str(tmp_path)))))
    assert "is not a Hugging Face model folder" in json.loads(capsys.readouterr().out)["skipped"]


def gpu_script() -> ModuleType:
    path = Path(__file__).parent.parent / "docs" / "results" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("part", ["checks", "speed", "compare"])
def test_the_gpu_script_runs_small_without_a_gpu(part: str, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path), "--tiny", "--minutes", "5", "--model", "tiny-random", "--seeds", "1"]
    assert gpu_script().main([*options, "--inside", part]) == 0
    found = json.loads((tmp_path / f"{part}.json").read_text())
    assert found["done"] and found["environment"]["packages"]["torch"]
    if part == "checks":
        assert max(found["largest_difference_to_cpu"].values()) < 1e-4
    if part == "speed":
        assert found["matmul_flops"] > 0 and found["rows"][0]["measured"]["throughput"]["update"] > 0
        assert found["rows"][0]["model_flops_of_update"] > 0 and "error" not in found["rows"][-1]
    if part == "compare":
        assert [run["recipe"] for run in found["runs"]] == ["etr", "grpo", "grpo_wide"]
        assert [point[0] for point in found["curves"]["copy/etr/reward"]] == [1, 2]


def test_the_gpu_script_stops_in_time_and_keeps_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = gpu_script()
    options = ["--out", str(tmp_path), "--tiny", "--minutes", "5", "--model", "tiny-random", "--inside"]

    def fails(part: Any) -> None:
        part.put(rows=[1])
        raise RuntimeError("the card fell out")

    monkeypatch.setitem(script.PARTS, "speed", fails)
    assert script.main([*options, "speed"]) == 1
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["rows"] == [1] and "the card fell out" in found["error"]
    ended: list[str] = []
    monkeypatch.setattr(script.run, "start", lambda *arguments: ended.append("run") or 1 / 0)
    assert script.main([*options, "compare"]) == 1 and ended == ["run"]
