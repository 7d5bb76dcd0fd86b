"""LoRA: only adapters are trained, merged weights are the model's own function, adapters are saved and loaded."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from llm_rollouts import from_full_logits, made_rollout
from llm_runs import CONFIG, recipe, start, trainer

from etr.cli import main
from etr.errors import InputError
from etr.llm.checkpoint import load
from etr.llm.lora import adapter_state, add_lora, has_lora, load_adapter_state, merged_weights
from etr.llm.models import LanguageModel, load_model, recompute_layers, tiny_model
from etr.llm.optimizers import make_optimizer
from etr.llm.policy import PACKINGS, Policy
from etr.recipe import OptimizerSettings

pytest.importorskip("transformers")
pytest.importorskip("peft")


def trained(dtype: str = "float32", steps: int = 3) -> LanguageModel:
    language_model = add_lora(tiny_model(dtype=dtype), rank=4)
    optimizer = make_optimizer(OptimizerSettings(lr=0.03), language_model)
    policy, rollout = Policy(language_model), made_rollout()
    for _ in range(steps):
        optimizer.zero_grad()
        policy.log_probs(rollout, slice(0, 12))[0].sum().backward()
        optimizer.step()
    return language_model


def test_only_adapters_are_trained_and_the_start_is_the_model_itself() -> None:
    language_model, rollout = add_lora(tiny_model(dtype="bfloat16"), rank=4), made_rollout()
    optimizer = make_optimizer(OptimizerSettings(), language_model)
    assert optimizer.param_names and all(".lora_" in name for name in optimizer.param_names)
    assert has_lora(language_model.model) and not has_lora(tiny_model().model)
    assert {p.dtype for p in language_model.model.parameters() if p.requires_grad} == {torch.float32}
    rows = slice(0, 12)
    with torch.no_grad():
        expected = Policy(tiny_model(dtype="bfloat16")).log_probs(rollout, rows)[0]
        assert torch.equal(Policy(language_model).log_probs(rollout, rows)[0], expected)


def test_the_start_is_fixed_by_the_seed_and_the_global_state_left_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    same, again, other = (adapter_state(add_lora(tiny_model(), 4, seed).model) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    name = next(name for name in same if "lora_A" in name)
    assert torch.equal(same[name], again[name]) and not torch.equal(same[name], other[name])


def test_merged_weights_have_the_names_of_the_model_and_compute_the_same() -> None:
    language_model, rollout = trained(), made_rollout()
    merged, plain = dict(merged_weights(language_model.model)), tiny_model()
    assert merged.keys() == plain.model.state_dict().keys()  # the tied head under its own name too
    before = plain.model.state_dict()["model.layers.0.mlp.up_proj.weight"].clone()
    plain.model.load_state_dict(merged)
    assert not torch.equal(before, merged["model.layers.0.mlp.up_proj.weight"])
    expected = from_full_logits(plain.model, rollout, 1.0)[0].float()
    found = Policy(language_model).log_probs(rollout, slice(0, 12))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    fresh = from_full_logits(tiny_model().model, rollout, 1.0)[0].float()
    assert (found - fresh).abs().max() > 0.1  # the training moved something


def test_merged_weights_are_the_formula() -> None:
    model = trained("bfloat16").model
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    a, b = (part["default"].weight for part in (layer.lora_A, layer.lora_B))
    expected = (layer.base_layer.weight.float() + 2.0 * b @ a).to(torch.bfloat16)  # α / r = 2
    found = dict(merged_weights(model))["model.layers.0.self_attn.q_proj.weight"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("packing", PACKINGS)
def test_every_packing_reads_the_adapters(packing: str) -> None:
    language_model, rollout = trained(), made_rollout()
    expected = from_full_logits(language_model.model, rollout, 1.0)[0].float()
    found = Policy(language_model, packing=packing).log_probs(rollout, slice(0, 12))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_adapters_get_gradients_through_recomputed_layers() -> None:
    language_model = add_lora(tiny_model(), rank=4)
    recompute_layers(language_model.model)
    Policy(language_model).log_probs(made_rollout(), slice(0, 12))[0].sum().backward()
    gradients = [p.grad for name, p in language_model.model.named_parameters() if "lora_B" in name]
    assert gradients and all(g is not None and g.any() for g in gradients)


def test_adapters_are_saved_and_loaded() -> None:
    source, target = trained(), add_lora(tiny_model(), rank=4)
    load_adapter_state(target.model, {name: value.clone() for name, value in adapter_state(source.model).items()})
    for (name, one), (_, other) in zip(merged_weights(source.model), merged_weights(target.model), strict=True):
        assert torch.equal(one, other), name
    with pytest.raises(InputError, match="adapters are of another model or another lora_rank; resume with"):
        load_adapter_state(add_lora(tiny_model(), rank=2).model, adapter_state(source.model))


def test_bad_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="lora_rank is 0; give at least 1"):
        add_lora(tiny_model(), 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="lora_rank needs peft: pip install peft"):
        add_lora(tiny_model(), 4)


def test_a_checkpoint_with_adapters_is_a_model_folder(tmp_path: Path) -> None:
    start(tmp_path / "run", replace(CONFIG, steps=2, eval_items=0, lora_rank=2), recipe(**{"optimizer.lr": 0.05}))
    folder = tmp_path / "run/checkpoints/step-2"
    loaded, again = load_model(str(folder)), trainer(lora_rank=2, eval_items=0)
    load(folder, again.language_model.model, again.optimizer)
    state, plain = loaded.model.state_dict(), tiny_model().model.state_dict()
    for name, weight in merged_weights(again.language_model.model):
        torch.testing.assert_close(state[name], weight, rtol=0, atol=1e-6)
    assert not torch.equal(
        state["model.layers.0.self_attn.q_proj.weight"], plain["model.layers.0.self_attn.q_proj.weight"]
    )
    assert not has_lora(loaded.model) and loaded.path == folder
    words = ["eval", "--model", str(folder), "--task", "copy", "--items", "2", "--samples", "2", "--k", "1"]
    words += ["--engine", "transformers", "--device", "cpu", "--dtype", "bfloat16", "--max-new-tokens", "2"]
    assert main(words) == 0
    assert main([*words, "--dtype", "float16"]) == main([*words, "--device", "cuda:99"]) == 2


def test_adapters_without_their_base_say_where_to_name_it(tmp_path: Path) -> None:
    add_lora(tiny_model(), 2).model.save_pretrained(tmp_path, save_embedding_layers=False)
    for noted, sentence in (
        (None, "nothing says of which model"),
        ("./gone", r"base model '\./gone' cannot be loaded"),
    ):
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": noted}))
        with pytest.raises(
            InputError, match=f"holds LoRA adapters, and {sentence}|{sentence}.*base_model_name_or_path"
        ):
            load_model(str(tmp_path))


def test_adapters_on_top_of_adapters_note_what_they_were_trained_on(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"
    source = "tiny-random"
    for folder in folders:
        language_model = add_lora(load_model(source), 2)
        for name, parameter in language_model.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        language_model.model.save_pretrained(folder, save_embedding_layers=False)
        language_model.tokenizer.save_pretrained(folder)
        if source == "tiny-random":  # a run would say it
            file = folder / "adapter_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": source}))
        source = str(folder)
        expected = dict(merged_weights(language_model.model))
        found = load_model(source).model.state_dict()
        assert all(torch.allclose(found[name], weight, atol=1e-5) for name, weight in expected.items())
