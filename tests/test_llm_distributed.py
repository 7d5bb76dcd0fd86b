"""Two processes on gloo are one process: the same data, denominators, metrics, gradients and checkpoints."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_models import wide_heads

from etr.batch import Mean
from etr.errors import InputError
from etr.llm import keep, setup
from etr.llm.config import TrainConfig
from etr.llm.distributed import World, layers
from etr.llm.models import LanguageModel, load_model
from etr.llm.rollout import EngineError, EngineSettings, RolloutEngine, vllm_compat
from etr.llm.rollout.transformers_engine import TransformersEngine
from etr.llm.setup import check_recipe, check_shared
from etr.recipe import load_recipe
from etr.runs import read_metrics

TIMES = ("seconds", "seconds/rollout", "seconds/update", "seconds/sync", "tokens_per_s", "memory")


def etr(processes: int, *options: str) -> str:
    """`etr train`, alone or under torchrun; returns all that it printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "etr", "train", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout + done.stderr


def train(out: Path, processes: int, *options: str) -> str:
    """A run of three steps on the tiny model."""
    return etr(
        processes, "--out", str(out), "--model", "tiny-random", "--task", "copy", "--steps", "3", "--prompts", "5",
        "--group-size", "4", "--max-new-tokens", "3", "--eval-items", "0", "--engine", "transformers",
        "--save-every", "3", *options,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "rank", "file"),
    [("dapo", "0", "model"), ("grpo_wide", "0", "model"), ("kl_mask", "0", "model"), ("grpo", "2", "adapter_model")],
)
def test_two_processes_train_as_one(tmp_path: Path, objective: str, rank: str, file: str) -> None:
    """Five prompts on two ranks: shares and micro-batches differ in size; `grpo_wide` has whole-batch statistics,
    `kl_mask` a reference policy, which is sharded too. Three held-out questions: one rank has one, the other two."""
    options = ("--recipe", objective, "--micro-batch-tokens", "40", "--lora-rank", rank, "--eval-items", "3",
               "--eval-samples", "40", "--set", "optimizer.lr=3e-3", "optimizer.updates=2")  # fmt: skip
    for processes in (1, 2):
        train(tmp_path / str(processes), processes, *options)
    one, two = (read_metrics(tmp_path / str(n)) for n in (1, 2))
    assert [row["step"] for row in two] == [1, 2, 3]
    for alone, shared in zip(one, two, strict=True):
        assert alone.keys() - set(TIMES) <= shared.keys()
        for name in alone.keys() - set(TIMES) - {"gradient/signal", "gradient/noise"}:
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5, nan_ok=True), name
    first, second = (json.loads((tmp_path / str(n) / "eval.json").read_text()) for n in (1, 2))
    assert first["before"] == second["before"] and first["before"]["questions"] == 3
    assert first["after"]["pass@1"]["estimate"] == pytest.approx(second["after"]["pass@1"]["estimate"], abs=0.02)
    a, b = (load_file(tmp_path / str(n) / "checkpoints" / "step-3" / f"{file}.safetensors") for n in (1, 2))
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_in_one(tmp_path: Path) -> None:
    options = ("--recipe", "grpo", "--set", "optimizer.lr=3e-3", "optimizer.updates=2")
    train(tmp_path / "whole", 1, "--steps", "5", *options)
    train(tmp_path / "parts", 2, *options)
    etr(1, "--resume", str(tmp_path / "parts"), "--extend-to", "5")
    whole, parts = (read_metrics(tmp_path / name)[-1] for name in ("whole", "parts"))
    for name in ("reward", "entropy", "grad_norm", "policy/objective"):
        assert parts[name] == pytest.approx(whole[name], rel=1e-3, abs=1e-5), name
    assert json.loads((tmp_path / "parts" / "checkpoints" / "step-5" / "trainer.json").read_text())["step"] == 5


@pytest.mark.slow
def test_bfloat16_in_two_processes(tmp_path: Path) -> None:
    """Weights are rounded alike, so that the first rollout is that of one process up to the rounding of its passes."""
    said = [train(tmp_path / str(n), n, "--dtype", "bfloat16", "--set", "optimizer.lr=3e-3") for n in (1, 2)]
    one, two = (read_metrics(tmp_path / str(n)) for n in (1, 2))
    assert all(math.isfinite(row[name]) for row in two for name in ("reward", "entropy", "grad_norm", "kl"))
    assert two[0]["entropy"] == pytest.approx(one[0]["entropy"], rel=0.02)
    assert two[0]["reward"] == pytest.approx(one[0]["reward"], abs=0.11)  # two samples of twenty may differ
    assert two[0]["mismatch/mean"] < 0.05
    assert said[1].count("loading") == said[1].count("rollout engine") == 1 and "view tensor" not in said[1]


@pytest.mark.slow
def test_two_processes_resume_adapters_from_the_last_whole_checkpoint(tmp_path: Path) -> None:
    """The newest one is damaged: one process sets it aside, and all go on from the same."""
    options = ("--steps", "4", "--save-every", "1", "--keep-last", "2", "--lora-rank", "2", "--eval-items", "2",
               "--eval-every", "2", "--eval-samples", "2", "--set", "optimizer.lr=3e-3")  # fmt: skip
    train(tmp_path, 2, *options)
    before = read_metrics(tmp_path)
    newest = max(keep.finished(tmp_path / "checkpoints"), key=keep.step_of)
    (newest / "trainer.json").write_text("{}")
    said = etr(2, "--resume", str(tmp_path))
    assert said.count("is damaged") == 1 and f"resuming {tmp_path} after step 3" in " ".join(said.split())
    after = read_metrics(tmp_path)
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    for name in ("reward", "entropy", "grad_norm", "held_out/pass@1"):
        assert after[-1][name] == pytest.approx(before[-1][name], rel=1e-4), name


@pytest.mark.slow
@pytest.mark.skipif(vllm_compat.installed() is None or not vllm_compat.for_cpu(), reason="needs vLLM's build for CPUs")
def test_two_processes_with_a_vllm_engine_each(tmp_path: Path) -> None:
    """Each process samples its share with an engine of its own: the samples, rewards and weights of one process."""
    model = wide_heads()
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    options = ("--model", str(tmp_path / "model"), "--engine", "vllm", "--recipe", "grpo", "--eval-items", "3",
               "--group-size", "12", "--steps", "2", "--eval-samples", "16", "--set", "optimizer.lr=3e-3")  # fmt: skip
    for processes in (1, 2):
        train(tmp_path / str(processes), processes, *options)
    one, two = (read_metrics(tmp_path / str(n)) for n in (1, 2))
    for alone, shared in zip(one, two, strict=True):
        for name in ("reward", "entropy", "length", "truncated", "grad_norm"):
            assert shared[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-6), name
        assert shared["mismatch/canary"] < 1e-4 and shared["mismatch/max"] < 1e-3
    assert one[0]["grad_norm"] > 0
    results = [json.loads((tmp_path / str(n) / "eval.json").read_text()) for n in (1, 2)]
    assert results[0]["before"] == results[1]["before"]


class Pair(World):
    """One of two processes of which the other says `other`."""

    def gather(self, value: Any) -> list[Any]:
        return [value, other] if self.main else [other, value]


other: Any = None


def test_the_main_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert World().by_main(lambda: 3) == 3 and Pair(0, 2).by_main(lambda: 3) == 3
    monkeypatch.setattr(sys.modules[__name__], "other", 5)
    assert Pair(1, 2).by_main(lambda: pytest.fail("ran beside the main process")) == 5
    monkeypatch.setattr(sys.modules[__name__], "other", EngineError("no room"))
    with pytest.raises(EngineError, match="no room"):
        Pair(1, 2).by_main(lambda: 3)

    def refuse() -> int:
        raise InputError("no file")

    monkeypatch.setattr(sys.modules[__name__], "other", None)
    with pytest.raises(InputError, match="no file"):
        Pair(0, 2).by_main(refuse)


def test_what_stops_one_process_stops_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def dead() -> int:
        raise EngineError("mine died")

    monkeypatch.setattr(sys.modules[__name__], "other", 7)
    assert Pair(0, 2).together(lambda: 3) == [3, 7] and Pair(1, 2).together(lambda: 3) == [7, 3]
    with pytest.raises(EngineError, match="mine died"):
        Pair(1, 2).together(dead)
    monkeypatch.setattr(sys.modules[__name__], "other", EngineError("its own died"))
    with pytest.raises(EngineError, match="its own died"):
        Pair(1, 2).together(lambda: 3)
    with pytest.raises(EngineError, match="mine died"):
        Pair(1, 2).together(dead)
    with pytest.raises(EngineError, match="mine died"):
        World().together(dead)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"optimizer_state": "8bit"}, "optimizer_state 8bit works in one process only"),
        ({"optimizer_state": "offload"}, "optimizer_state offload works in one process only"),
        ({"dtype": "float16"}, "dtype is float16; several processes train in float32 or bfloat16"),
        ({"prompts": 1}, "1 prompts a step are fewer than 2 processes"),
    ],
)
def test_what_several_processes_cannot_have_is_refused(changes: dict[str, Any], sentence: str) -> None:
    config = TrainConfig(**changes)
    if "prompts" not in changes:
        check_shared(config, World())
    with pytest.raises(InputError, match=sentence):
        check_shared(config, World(0, 2))


def test_the_reference_is_sharded_in_the_format_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    sharded: list[tuple[torch.dtype, torch.dtype]] = []
    monkeypatch.setattr(setup, "shard", lambda model, dtype: sharded.append((model.dtype, dtype)))
    trained, config = load_model("tiny-random"), TrainConfig(dtype="bfloat16")
    reference = setup.frozen_reference(config, trained, Pair(0, 2)).language_model.model
    assert sharded == [(torch.bfloat16, torch.bfloat16)] and trained.model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    setup.frozen_reference(config, trained, World())
    assert len(sharded) == 1


@pytest.mark.parametrize(
    ("objective", "micro_batches", "processes", "sentence"),
    [
        ("bapo", None, 2, "'bapo' looks at a whole batch at a time, which 2 processes would share out"),
        ("bapo", 2, 1, "'bapo' looks at a whole batch at a time, but micro-batches cut it"),
        ("adpo", 3, 1, "'adpo' looks at a whole group at a time, but micro-batches cut it"),
        ("adpo", 2, 2, "'adpo' looks at a whole group at a time, but micro-batches cut it"),  # three prompts, two parts
        ("grpo", 50, 1, "micro_batches is 50 but a batch has 40 responses"),
    ],
)
def test_what_would_cut_a_group_or_batch_is_refused_before_anything_is_loaded(
    objective: str, micro_batches: int | None, processes: int, sentence: str
) -> None:
    recipe, config = load_recipe(objective, {"optimizer.micro_batches": micro_batches}), TrainConfig(prompts=5)
    with pytest.raises(InputError, match=sentence):
        check_recipe(recipe, config, World(0, processes))
    if processes == 1:
        with pytest.raises(InputError, match=sentence):
            setup.build(recipe, replace(config, model="no-such-model"), print)


def test_what_cuts_nothing_passes() -> None:
    for objective, count, processes in (
        ("bapo", 1, 1),
        ("adpo", 5, 1),
        ("adpo", 1, 2),
        ("grpo", 3, 2),
        ("bapo", None, 1),
    ):
        recipe = load_recipe(objective, {"optimizer.micro_batches": count})
        check_recipe(recipe, TrainConfig(prompts=5), World(0, processes))


def test_refills_with_the_trainers_own_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sampling gathers the weights from all processes, and one that replaces nothing would not take part."""
    monkeypatch.setattr(sys.modules[__name__], "other", "transformers")
    trained = load_model("tiny-random")
    with pytest.raises(InputError, match="refills is set, and several processes"):
        setup.start_engine(TrainConfig(refills=1, engine="transformers"), trained, Pair(0, 2), print)
    setup.start_engine(TrainConfig(refills=1, engine="transformers"), trained, World(), print)


def test_the_engine_starts_in_the_format_of_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights of several processes are float32; all must have the same engine."""
    started: list[torch.dtype] = []

    def make(name: str, language_model: LanguageModel, settings: EngineSettings, say: Any) -> RolloutEngine:
        started.append(language_model.model.dtype)
        return TransformersEngine(language_model)

    monkeypatch.setattr(setup, "make_engine", make)
    monkeypatch.setattr(sys.modules[__name__], "other", "transformers")
    trained = load_model("tiny-random")
    engine = setup.start_engine(TrainConfig(dtype="bfloat16"), trained, Pair(0, 2), print)
    assert started == [torch.bfloat16] and isinstance(engine, TransformersEngine)
    assert engine.language_model is trained and trained.model.dtype == torch.float32
    monkeypatch.setattr(sys.modules[__name__], "other", "vllm")
    with pytest.raises(InputError, match="the processes started different engines"):
        setup.start_engine(TrainConfig(), trained, Pair(0, 2), print)


def test_alone_nothing_is_shared_out() -> None:
    world = World.join(torch.device("cpu"))
    sums = {"x": Mean(torch.tensor(1.0), torch.tensor(2.0))}
    assert world.main and world.share(3) == slice(0, 3) and world.gather("x") == ["x"]
    assert world.idle([slice(0, 1)]) == 0 and world.total(sums)["x"].value.item() == 0.5
    rows = torch.ones(2, 3)
    assert world.gather_rows(rows) is rows and world.agree(True) and not world.agree(False)


def test_shares_cover_everything_once_and_never_are_empty() -> None:
    for size in range(1, 6):
        for count in range(size, 12):
            taken = [i for rank in range(size) for i in list(range(count))[World(rank, size).share(count)]]
            assert taken == list(range(count))
    assert [list(range(3))[World(rank, 4).part(3)] for rank in range(4)] == [[], [0], [1], [2]]
    with pytest.raises(InputError, match="3 prompts a step are fewer than 4 processes; raise prompts"):
        World(0, 4).share(3)


def test_only_a_model_with_layers_can_be_sharded() -> None:
    inner = torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(3)])
    model = torch.nn.ModuleDict({"few": torch.nn.ModuleList([torch.nn.Linear(1, 1)]), "many": inner})
    assert list(layers(model)) == list(inner)
    with pytest.raises(InputError, match="Linear has no list of layers to shard; train it in one process"):
        layers(torch.nn.Linear(1, 1))
