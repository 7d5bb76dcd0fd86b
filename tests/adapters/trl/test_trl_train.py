"""Whole runs of a tiny model under the installed TRL: the first steps' loss, refusals, checkpoints, folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("trl", reason="needs TRL: make adapters")

import trl_tiny as tiny
from safetensors.torch import load_file
from trl_captured import capture, expected

import etr
from etr.adapters.trl import ETRGRPOTrainer
from etr.adapters.trl.main import main
from etr.adapters.trl_settings import arguments
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import Recipe, load_recipe
from etr.recorded import load

TWICE = {"optimizer.updates": 2, "optimizer.max_grad_norm": None}


def of_kind(wanted: Any) -> str:
    """The first objective of the library for which that holds, among those whose needs TRL meets without vLLM."""
    return next(n for n in etr.list_objectives() if wanted(etr.get(n)))


def test_smoke() -> None:
    """Run for every version that docs/hosts.md lists: losses of the first two steps are ours."""
    recipe = load_recipe("etr", TWICE)
    found = capture(tiny.trainer(recipe, gradient_accumulation_steps=2, max_steps=2))
    for place, step in enumerate(found.steps):
        loss, gradient = expected(recipe, [found], place)
        assert step.loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
        for name, value in gradient.items():
            torch.testing.assert_close(step.gradient[name], value, rtol=1e-4, atol=2e-6)
    assert abs(found.steps[1].loss) > 1e-3


def test_no_pass_takes_more_rows_than_a_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the one which reads the policy before the update, of a whole generation: it would not fit in memory."""
    name = of_kind(lambda o: o.reads_policy and not o.needs and not o.undivided)
    trainer = tiny.trainer(load_recipe(name, TWICE), gradient_accumulation_steps=4, max_steps=1)
    rows: list[int] = []
    trainer.model.register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["input_ids"])),
        with_kwargs=True,
    )
    monkeypatch.setattr(trainer, "_generate", _generated(trainer._generate, rows))
    trainer.train()
    assert rows and max(rows) <= trainer.args.per_device_train_batch_size


def _generated(generate: Any, rows: list[int]) -> Any:
    def found(prompts: Any) -> Any:
        made = generate(prompts)
        rows.clear()  # sampling takes them all at once
        return made

    return found


def test_metrics_are_exact_means_over_the_step() -> None:
    log = tiny.run(load_recipe("etr", TWICE), gradient_accumulation_steps=2, max_steps=2).state.log_history
    assert log[0]["etr/policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert log[1]["etr/policy/ratio"] != pytest.approx(1.0, abs=1e-3)
    assert 0 < log[0]["entropy"] < math.log(len(tiny.CHARACTERS) + 1)


def test_an_entropy_bonus_has_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL computes entropies without a graph unless its own bonus is on."""
    recipe = load_recipe("entropy_bonus", TWICE)
    try:
        found = capture(tiny.trainer(recipe, gradient_accumulation_steps=2, max_steps=2))
    except InputError as error:
        assert "without a gradient" in str(error)  # TRL up to 1.8
        return
    gradient = expected(recipe, [found], 1)[1]
    for name, value in gradient.items():
        torch.testing.assert_close(found.steps[1].gradient[name], value, rtol=1e-4, atol=2e-6)


def test_a_whole_batch_statistic_is_taken_before_the_split() -> None:
    name = of_kind(lambda o: o.columns and o.reads_policy and not o.needs and not o.undivided)
    recipe = load_recipe(name, TWICE)
    found = capture(tiny.trainer(recipe, gradient_accumulation_steps=4, max_steps=2))
    loss, gradient = expected(recipe, [found], 0)
    assert found.steps[0].loss == pytest.approx(loss, rel=1e-4, abs=1e-6)
    for key, value in gradient.items():
        torch.testing.assert_close(found.steps[0].gradient[key], value, rtol=1e-4, atol=2e-6, msg=f"{name}: {key}")


def test_state_goes_on_where_the_checkpoint_left_it(tmp_path: Path) -> None:
    recipe = load_recipe("riskpo", {"optimizer.updates": 1})
    with pytest.warns(UserWarning, match="all ratios are 1"):
        first = tiny.trainer(recipe, folder=str(tmp_path), max_steps=3, save_strategy="steps", save_steps=2)
    first.train()
    saved = load_file(tmp_path / "checkpoint-2" / "etr_state.safetensors")
    fresh = recipe.objective.init_state((), torch.device("cpu"))
    assert any(not torch.equal(saved[key], value) for key, value in fresh.items())
    second = tiny.trainer(recipe, folder=str(tmp_path), max_steps=3)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.global_step == 3
    for key, value in first.state_of_objective.items():  # as if it had never stopped
        assert torch.equal(second.state_of_objective[key], value)


def test_reference_log_probs_are_trls_and_its_penalty_is_not_added(tmp_path: Path) -> None:
    name = of_kind(lambda o: o.needs == {"ref_log_probs"})
    tiny.model().save_pretrained(tmp_path)
    config = {"use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 4, "max_steps": 1}
    from datasets import Dataset
    from trl import GRPOConfig

    recipe = load_recipe(name, TWICE)
    args = GRPOConfig(str(tmp_path / "run"), per_device_train_batch_size=12, max_completion_length=6,
                      learning_rate=1e-3, logging_steps=1, **config, **arguments(recipe))  # fmt: skip
    data = Dataset.from_dict({"prompt": [f"{a}+1=" for a in range(6)]})
    record = tmp_path / "first.safetensors"
    trainer = ETRGRPOTrainer(str(tmp_path), tiny.even, args, train_dataset=data, recipe=recipe, record=record,
                             processing_class=tiny.tokenizer())  # fmt: skip
    trainer.train()
    batch = load(record).batch  # at the start the policy is its own reference
    kept = batch.response_mask
    torch.testing.assert_close(batch.ref_log_probs[kept], batch.log_probs[kept], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["tis", "none"])
def test_an_engine_is_corrected_for_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the recipe's weights where it has any, else with TRL's. Of vLLM only the log-probs are needed."""
    trainer = tiny.trainer(load_recipe("grpo", TWICE))
    trainer.recipe = load_recipe("grpo", {**TWICE, "correction.kind": kind, "correction.high": 1.5})
    monkeypatch.setattr("etr.adapters.trl.whole.check_engine", lambda _: None)
    generate = trainer._generate

    def generated(prompts: Any) -> Any:
        found = list(generate(prompts))
        found[4] = [[-2.5] * len(ids) for ids in found[1]]  # log-probs of the engine
        found[4][0][0] = None  # one that vLLM could not score
        trainer.use_vllm = trainer.vllm_importance_sampling_correction = True
        return tuple(found)

    trainer._generate = generated
    trainer.model.train()
    found = trainer._generate_and_score_completions([{"prompt": f"{a}+1="} for a in range(3) for _ in range(4)])
    old, mask = found["old_per_token_logps"], found["completion_mask"].bool()
    engine = torch.full_like(old, -2.5)
    engine[0, 0] = old[0, 0]
    theirs = found["importance_sampling_ratio"].expand(mask.shape)
    wanted = (old - engine).exp().clamp(max=1.5) if kind == "tis" else theirs
    torch.testing.assert_close(found["etr/weights"][mask], wanted[mask])
    assert found["etr/weights"][mask].unique().numel() > 1
    if kind == "tis":
        torch.testing.assert_close(found["etr/rollout_log_probs"][mask], engine[mask])


REFUSED = [
    ({"epsilon": 0.3}, "GRPOConfig.epsilon is 0.3"),
    ({"beta": 0.1}, "GRPOConfig.beta is 0.1"),
    ({"loss_type": "dr_grpo"}, "GRPOConfig.loss_type"),
    ({"scale_rewards": "none"}, "GRPOConfig.scale_rewards"),
    ({"num_iterations": 3}, "means 2"),
    ({"top_p": 0.9}, "top_p is 0.9"),
    ({"top_k": 20}, "top_k is 20"),
    ({"generation_kwargs": {"min_p": 0.1}}, "min_p is 0.1"),
    ({"use_liger_kernel": True}, "use_liger_kernel"),
    ({"gradient_accumulation_steps": 4, "steps_per_generation": 2}, "multiple of gradient_accumulation_steps"),
]


@pytest.mark.parametrize("settings, wanted", REFUSED, ids=[wanted for _, wanted in REFUSED])
def test_settings_beside_the_recipe_are_refused(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(InputError, match=wanted):
        tiny.trainer(load_recipe("etr", TWICE), **settings)


def test_what_the_layout_cannot_give_is_refused() -> None:
    class Pairs(Objective):
        undivided = "group"

    class Engine(Objective):
        @property
        def needs(self) -> frozenset[str]:
            return frozenset({"rollout_log_probs"})

    with pytest.raises(InputError, match="TRL shuffles the responses"):
        tiny.trainer(Recipe("pairs", Pairs()), gradient_accumulation_steps=2)
    with pytest.raises(InputError, match="TRL without vLLM"):
        tiny.trainer(Recipe("engine", Engine()))
    with pytest.raises(InputError, match="corrects for the rollout engine"):
        tiny.trainer(load_recipe("grpo", {"correction.kind": "tis"}))
    with pytest.raises(InputError, match="declare the range"):
        tiny.run(load_recipe("etr", TWICE), reward=lambda completions, **_: [2.0] * len(completions))


def test_a_promoted_folder_trains_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load_recipe("etr", {"optimizer.updates": 2, "optimizer.lr": 1e-3})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.as_dict()))
    rows = [
        {"prompt": [{"role": "user", "content": f"{a}+{b}="}], "answer": str(a + b)} for a in range(3) for b in range(4)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({**row, "scorer": "numeric"}) + "\n" for row in rows))
    settings = {
        "use_cpu": True, "bf16": False, "report_to": "none", "num_generations": 4, "per_device_train_batch_size": 8,
        "max_completion_length": 4, "max_steps": 2, "save_steps": 2, "output_dir": "run", **arguments(recipe),
    }  # fmt: skip
    text = {"model": "tiny-random", "dataset": "train.jsonl", "reward": "auto", "recipe": "recipe.yaml"}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump({**text, "arguments": settings}))
    assert main([str(tmp_path)]) == 0
    assert load(tmp_path / "first_batch.safetensors").recipe.objective == recipe.objective
    assert (tmp_path / "run" / "model.safetensors").is_file()
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump({**text, "arguments": {**settings, "max_steps": 4}}))
    assert main([str(tmp_path)]) == 0
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 4
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump({**text, "arguments": {**settings, "max_step": 4}}))
    assert main([str(tmp_path)]) == 1 and "did you mean 'max_steps'" in capsys.readouterr().err
