"""The calculator against arithmetic by hand: shapes, operations, seconds, memory; and laws that any cluster obeys."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from etr.errors import InputError
from etr.llm.config import TrainConfig
from etr.llm.doctor.memory import plan_memory
from etr.llm.doctor.outline import Outline
from etr.llm.doctor.work import Work
from etr.plan import Job, predict, shape_of
from etr.plan.devices import DEVICES, Device
from etr.plan.job import nodes_doubled
from etr.plan.memory import extrapolated, plan
from etr.plan.models import SHAPES, Shape, from_config
from etr.plan.predict import best_split, remedies, require_fit
from etr.plan.profile import Profile, read_profile
from etr.plan.ranges import Range, at_once, exactly
from etr.plan.speed import load, pass_operations, sync_seconds, training_seconds
from etr.recipe import load_recipe

MINI = Shape("mini", "llama", 100, 32, 4, 4, 2, 8, 64, tied=True)
CARD = Device("card", flops=1e12, bandwidth=1e11, memory=1e9, node=2)
JOB = Job(prompts=4, group_size=8, prompt_tokens=10, response_tokens=20, micro_batch_tokens=64, gpus=1)


@pytest.fixture
def mini(tmp_path: Path) -> str:
    """A folder with the config of a tiny model."""
    config = {
        "model_type": "llama", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 64, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "mini")


# Shapes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions"),  # what the models' cards and reports state
    [
        ("qwen2.5-0.5b", 0.494), ("qwen2.5-1.5b", 1.54), ("qwen2.5-3b", 3.09), ("qwen2.5-7b", 7.62),
        ("qwen2.5-14b", 14.77), ("qwen2.5-32b", 32.76), ("qwen2.5-72b", 72.71), ("qwen3-8b", 8.19), ("qwen3-32b", 32.8),
        ("qwen3-30b-a3b", 30.5), ("llama3.1-8b", 8.03), ("llama3.1-70b", 70.6), ("smollm2-135m", 0.1345),
    ],
)  # fmt: skip
def test_shapes_add_up_to_their_published_sizes(name: str, billions: float) -> None:
    assert SHAPES[name].weights == pytest.approx(1e9 * billions, rel=0.005)


def test_operations_and_cache_by_hand() -> None:
    layer = 32 * 8 * (4 + 4 + 2 + 2) + 3 * 32 * 64
    assert MINI.weights == MINI.multiplied == 4 * layer + 3200
    assert dataclasses.replace(MINI, tied=False).weights == MINI.weights + 3200
    assert MINI.forward_flops(7) == 2 * MINI.multiplied + 4 * 4 * 4 * 8 * 7
    assert MINI.cache_bytes() == 2 * 4 * 2 * 8 * 2
    experts = dataclasses.replace(MINI, experts=6, chosen=2)
    assert experts.weights - experts.multiplied == 4 * 3 * 32 * 64 * 4  # four of six experts rest
    assert SHAPES["qwen3-30b-a3b"].multiplied == pytest.approx(3.0e9, rel=0.03)  # its card: 3.3, embedding included


def test_names_sizes_and_folders(mini: str) -> None:
    assert shape_of("7B").name == "qwen2.5-7b" and shape_of("8b").name == "qwen3-8b"
    assert shape_of("70b").name == "llama3.1-70b" and shape_of("30b-a3b").experts == 128
    assert dataclasses.replace(shape_of(mini), name="mini") == MINI
    assert shape_of(f"{mini}/config.json").hidden == 32
    with pytest.raises(InputError, match=r"did you mean 'qwen2\.5-7b'"):
        shape_of("qwen2.5-7bb")
    with pytest.raises(InputError, match="does not state the shape of a decoder"):
        from_config("x", {"hidden_size": 3})


# Seconds -------------------------------------------------------------------------------------------------------


def test_ranges_keep_good_with_good() -> None:
    assert exactly(6).over(Range(3, 2, 1)) == Range(2, 3, 6)
    assert at_once(Range(1, 5, 9), Range(2, 4, 10)) == Range(2, 5, 10)
    assert Range(1, 2, 3) + Range(1, 1, 1) == Range(2, 3, 4)


def test_training_by_hand() -> None:
    forward = 32 * 30 * MINI.forward_flops(15)
    assert pass_operations(JOB, MINI) == forward
    scoring, update = training_seconds(dataclasses.replace(JOB, updates=3), MINI, exactly(1e6))
    assert scoring.mid == forward / 1e6
    assert update.mid == pytest.approx(3 * 4 * forward / 1e6)  # forward, recomputed, and backward twice as long
    plain = dataclasses.replace(JOB, gradient_checkpointing=False)
    assert training_seconds(plain, MINI, exactly(1e6))[1].mid == pytest.approx(3 * forward / 1e6)
    lora = dataclasses.replace(plain, lora_rank=4)
    assert training_seconds(lora, MINI, exactly(1e6))[1].mid == pytest.approx(2 * forward / 1e6)
    once = dataclasses.replace(JOB, prompts_once=True)  # 8 completions share the 10 tokens of their prompt
    assert pass_operations(once, MINI) == 32 * 21.25 * MINI.forward_flops(15)


def test_rollout_by_hand(mini: str) -> None:
    found = predict(dataclasses.replace(JOB, model=mini, longest_tokens=50), device=CARD)
    bandwidth, decoding, busy = 0.6 * 1e11, 0.35 * 1e12, found.assumed["arithmetic while training"].value.mid * 1e12
    weights = 50 * 2 * MINI.weights / bandwidth
    arithmetic = 32 * 20 * MINI.forward_flops(20) / decoding
    cache = 32 * 20 * 20 * MINI.cache_bytes() / bandwidth
    prefill = 4 * 10 * MINI.forward_flops(5) / busy
    assert found.seconds["rollout"].mid == pytest.approx(max(weights, arithmetic) + cache + prefill + 50 * 0.01)
    assert found.step.mid == pytest.approx(sum(value.mid for value in found.seconds.values()))
    assert found.rates["rollout"].mid == pytest.approx(640 / found.seconds["rollout"].mid)
    assert found.hours.mid == pytest.approx(1000 * found.step.mid / 3600)
    assert found.cost(2).mid == pytest.approx(2 * found.hours.mid)


def test_waves_nodes_and_sync_by_hand() -> None:
    job = dataclasses.replace(JOB, gpus=4, longest_tokens=50)
    assert load(job, gpus=2, concurrent=4).steps == 50 + 3 * 20  # 16 sequences a copy, 4 at a time
    assert load(job, gpus=2, concurrent=99).steps == 50
    assert [nodes_doubled(gpus, CARD) for gpus in (1, 2, 3, 4, 8)] == [0, 0, 0.5, 1, 2]
    found = predict(dataclasses.replace(JOB, gpus=2, model="0.5b"), device=dataclasses.replace(CARD, memory=8e10))
    assert sync_seconds(found.job, found.shape, found.assumed).mid == pytest.approx(2 * found.shape.weights / 1e10)
    assert sync_seconds(JOB, MINI, found.assumed) == exactly(0)


def test_separate_gpus_work_at_once_and_wait_for_the_slower(mini: str) -> None:
    job = dataclasses.replace(JOB, model=mini, gpus=4, engine_share=0.5)
    found = predict(job, device=CARD)
    rollout, training = found.seconds["rollout"].mid, found.training.mid
    assert found.step.mid == pytest.approx(max(rollout, training) + found.seconds["sync"].mid)
    assert found.idle == pytest.approx(1 - (rollout + training) / (2 * max(rollout, training)))
    best = best_split(dataclasses.replace(job, engine_share=0.0), device=CARD)
    assert best is not None and best.step.mid <= found.step.mid


# Memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("recomputing", [False, True])
def test_one_gpu_is_the_doctors_plan(dtype: str, recomputing: bool) -> None:
    from transformers import LlamaConfig

    work = Work(1, 1, 1, "padded", 2, 1, 64, 64)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=7, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    settings = TrainConfig(dtype=dtype, gradient_checkpointing=recomputing)
    whole = plan_memory(Outline("mini", config, None), load_recipe("grpo"), settings, work)
    line = extrapolated(dataclasses.replace(MINI, layers=7), work, dtype, recomputing, "float32")
    for part in ("weights", "rest of float32 masters", "optimizer state", "gradients"):
        assert line.parts[part] == pytest.approx(whole.parts[part], rel=0.02)
    assert line.parts["activations"] == pytest.approx(whole.parts["activations"], rel=0.02)
    assert line.phases["update"] == pytest.approx(whole.phases["update"], rel=0.05)
    job = dataclasses.replace(JOB, dtype=dtype, gradient_checkpointing=recomputing)
    assert plan(job, dataclasses.replace(MINI, layers=7), CARD).update == line.phases["update"]


def test_state_is_sharded_and_activations_are_not() -> None:
    one, eight = (plan(dataclasses.replace(JOB, gpus=gpus), MINI, CARD) for gpus in (1, 8))
    for part in ("weights", "rest of float32 masters", "optimizer state"):
        assert eight.parts[part] == pytest.approx(one.parts[part] / 8)
    assert eight.parts["activations"] == one.parts["activations"]
    assert one.parts["layers gathered"] == 0
    assert eight.parts["layers gathered"] == 2 * (2 * (MINI.weights - 3200) / 4 + 3200)


def test_keys_and_values_fill_what_is_left() -> None:
    small = dataclasses.replace(CARD, memory=1.2e6)
    found = plan(dataclasses.replace(JOB, engine_share=0.5, gpus=2), MINI, small)
    assert found.concurrent == (0.9 * 1.2e6 - 2 * MINI.weights) // (30 * MINI.cache_bytes())
    resident = plan(dataclasses.replace(JOB, gpus=2), MINI, small)
    offloaded = plan(dataclasses.replace(JOB, gpus=2, offload=True), MINI, small)
    assert resident.concurrent < offloaded.concurrent == found.concurrent


def test_what_does_not_fit_says_what_would(mini: str) -> None:
    small = dataclasses.replace(CARD, memory=7.2e5)
    found = predict(dataclasses.replace(JOB, model=mini), device=small)
    assert not found.memory.fits
    ways = list(remedies(found.job, found.shape, small))
    assert any(way.startswith("--gpus") for way in ways)
    with pytest.raises(InputError, match=r"does not fit on 1 card: .* it fits with .*--gpus"):
        require_fit(found)
    none = predict(dataclasses.replace(JOB, model=mini), device=dataclasses.replace(CARD, memory=1e4))
    with pytest.raises(InputError, match="take a smaller model"):
        require_fit(none)


def test_lora_trains_two_thin_matrices_a_layer() -> None:
    adapters = 4 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))  # layers, rank, in + out of each layer
    assert MINI.adapters(4) == adapters
    whole, lora = plan(JOB, MINI, CARD).parts, plan(dataclasses.replace(JOB, lora_rank=4), MINI, CARD).parts
    assert lora["weights"] == whole["weights"] + 4 * adapters
    assert (lora["gradients"], lora["optimizer state"]) == (4 * adapters, 8 * adapters)
    assert lora["rest of float32 masters"] == 0 and lora["activations"] == whole["activations"]


# Laws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", [4, 64])
def test_more_gpus_are_never_slower_and_need_less_memory_each(mini: str, prompts: int) -> None:
    found = [
        predict(dataclasses.replace(JOB, model=mini, prompts=prompts, gpus=2**k), device=CARD) for k in range(1, 8)
    ]
    for few, many in pairwise(found):
        assert many.memory.update <= few.memory.update
        for phase in ("rollout", "scoring", "update"):
            for end in ("good", "mid", "bad"):
                assert getattr(many.seconds[phase], end) <= 1.0000001 * getattr(few.seconds[phase], end)


@pytest.mark.parametrize("change", [{"response_tokens": 40}, {"prompts": 8}, {"updates": 2}, {"prompt_tokens": 40}])
def test_more_work_takes_longer(mini: str, change: dict[str, Any]) -> None:
    job = dataclasses.replace(JOB, model=mini)
    assert predict(dataclasses.replace(job, **change), device=CARD).step.mid > predict(job, device=CARD).step.mid


def test_good_is_never_worse_than_bad(mini: str) -> None:
    for device in DEVICES.values():
        for value in predict(dataclasses.replace(JOB, model=mini, gpus=16), device=device).seconds.values():
            assert value.good <= value.mid <= value.bad


# Profiles ------------------------------------------------------------------------------------------------------


def measured(**more: Any) -> dict[str, Any]:
    """What `etr doctor --measure --json` writes, as far as a profile reads it."""
    step = {
        "weights": MINI.multiplied, "read": 1000, "sampled": 640, "throughput": {"rollout": 64.0},
        "seconds": {"update": 2.0, "rollout": 10.0}, "work": {"completions": 16, "answer": 20},
    }  # fmt: skip
    machine = {"gpu": None, "processor": "Xeon", "memory": 2e9}
    return {"device": "cpu", "machine": machine, "measured": {**step, **more}}


def test_a_profile_of_a_processor_scales_with_the_work(tmp_path: Path, mini: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(measured()))
    profile = read_profile(path)
    assert profile.operations == 6 * MINI.multiplied * 1000 / 2 and not profile.on_gpu and profile.memory == 2e9
    found = predict(dataclasses.replace(JOB, model=mini), profile)
    assert found.seconds["rollout"].mid == pytest.approx(10 * 2)  # twice the measured sequences, equally long
    assert found.seconds["scoring"].mid == pytest.approx(pass_operations(JOB, MINI) / profile.operations)


def test_a_profile_of_a_gpu_leaves_open_what_a_larger_batch_costs(tmp_path: Path, mini: str) -> None:
    values = measured() | {"device": "cuda"}
    values["machine"] = {"gpu": {"name": "H100", "memory": 8e10}}
    slower = {**values, "measured": {**values["measured"], "throughput": {"rollout": 1.0}}}
    path = tmp_path / "speed.json"  # as docs/results/gpu.py writes it
    path.write_text(json.dumps({"rows": [{"settings": {"engine": "transformers"}, **slower},
                                         {"settings": {"engine": "vllm"}, **values},
                                         {"settings": {"dtype": "float32"}, "error": "no"}]}))  # fmt: skip
    profile = read_profile(path)
    rollout = predict(dataclasses.replace(JOB, model=mini), profile).seconds["rollout"]
    assert [rollout.good, rollout.mid, rollout.bad] == pytest.approx([10, 10 * 2**0.5, 20])
    assert isinstance(profile, Profile) and profile.device == "H100"


def test_what_is_no_profile_is_said(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"measured": None}))
    with pytest.raises(InputError, match="holds no measured step; write one with: etr doctor"):
        read_profile(path)
    path.write_text(json.dumps(measured(work={})))
    with pytest.raises(InputError, match="misses 'completions'"):
        read_profile(path)
