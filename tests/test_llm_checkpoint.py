"""A checkpoint resumes exactly, is a normal model folder, and survives kills and full disks."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import etr
from etr.errors import InputError
from etr.llm import checkpoint, keep
from etr.llm.lora import add_lora
from etr.llm.models import LanguageModel, load_model, tiny_model
from etr.llm.nested import put_together, take_apart

pytest.importorskip("transformers")
METHODS: dict[str, Any] = {
    "adam": lambda parameters, lr: torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
}
STATE = {"bound": torch.tensor([0.2, 0.3], dtype=torch.float64), "count": torch.tensor(3)}


def start(seed: int = 0, lr: float = 1e-2, method: str = "adam") -> tuple[LanguageModel, torch.optim.Optimizer]:
    language_model = tiny_model(seed)
    return language_model, METHODS[method](language_model.model.parameters(), lr)


def train(language_model: LanguageModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(18, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        language_model.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


def no_words(text: str) -> None:
    raise AssertionError(text)


def weights(language_model: LanguageModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in language_model.model.parameters()])


@pytest.mark.parametrize("method", METHODS)
def test_saving_and_resuming_changes_no_bit(tmp_path: Path, method: str) -> None:
    straight = start(method=method)
    train(*straight, range(6))
    first = start(method=method)
    train(*first, range(3))
    checkpoint.save(tmp_path, 3, *first, STATE)
    second = start(
        seed=1, lr=0.5, method=method
    )  # other weights, other settings: all of it must come from the checkpoint
    newest = keep.usable(tmp_path, no_words)
    assert newest is not None
    restored = checkpoint.load(newest, second[0].model, second[1])
    train(*second, range(3, 6))
    assert torch.equal(weights(second[0]), weights(straight[0]))
    assert restored.step == 3
    assert restored.state.keys() == STATE.keys()
    assert all(torch.equal(restored.state[key], STATE[key]) for key in STATE)
    assert all(restored.state[key].dtype == STATE[key].dtype for key in STATE)


def test_a_checkpoint_before_any_step_has_no_optimizer_state(tmp_path: Path) -> None:
    run = start()
    path = checkpoint.save(tmp_path, 0, *run, {})
    assert checkpoint.load(path, run[0].model, run[1])[:3] == (0, {}, 0)
    train(*run, range(1))


def test_it_is_a_normal_model_folder_without_pickles(tmp_path: Path) -> None:
    language_model, optimizer = start()
    train(language_model, optimizer, range(2))
    path = checkpoint.save(tmp_path, 2, language_model, optimizer, STATE)
    loaded = load_model(str(path))
    assert torch.equal(weights(loaded), weights(language_model))
    assert loaded.model.get_output_embeddings().weight is loaded.model.get_input_embeddings().weight
    assert loaded.tokenizer("1+2")["input_ids"] == language_model.tokenizer("1+2")["input_ids"]
    assert {file.suffix for file in path.iterdir()} == {".json", ".safetensors"}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_newest_are_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    run = start()
    (tmp_path / "step-1-notes").mkdir()
    (tmp_path / ".step-9.partial").mkdir()
    for step in (2, 10, 11):
        checkpoint.save(tmp_path, step, *run, {}, keep_last=2)
    assert names(tmp_path) == ["step-1-notes", "step-10", "step-11"]
    checkpoint.save(tmp_path, 12, *run, {})
    assert names(tmp_path) == ["step-1-notes", "step-12"]
    assert keep.usable(tmp_path / "none", no_words) is None


def test_the_best_one_stays_and_has_a_link(tmp_path: Path) -> None:
    run = start()
    for step, value in ((2, 0.25), (4, 0.5), (6, 0.4)):
        checkpoint.save(tmp_path, step, *run, {})
        best = keep.read_best(tmp_path)
        if best is None or value > best.value:
            keep.mark_best(tmp_path, step, value)
    assert names(tmp_path) == ["best", "best.json", "step-4", "step-6"]
    assert (tmp_path / "best").resolve() == (tmp_path / "step-4").resolve()
    assert keep.read_best(tmp_path) == (4, 0.5)
    assert load_model(str(tmp_path / "best")).path == (tmp_path / "step-4").resolve()
    (tmp_path / "best").unlink()  # as if killed between the record and the link
    checkpoint.save(tmp_path, 8, *run, {})
    assert (tmp_path / "best").resolve().name == "step-4" and names(tmp_path)[-2:] == ["step-4", "step-8"]


def test_a_finished_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    run = start()
    checkpoint.save(tmp_path, 1, *run, {})
    with pytest.raises(InputError, match=r"checkpoint '.*step-1' exists already; choose another folder"):
        checkpoint.save(tmp_path, 1, *run, {})


@pytest.mark.parametrize("moment", ["save_file", "to_json", "write_manifest", "_sync"])
def test_a_kill_while_saving_leaves_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    run = start()
    checkpoint.save(tmp_path, 1, *run, {})
    monkeypatch.setattr(checkpoint, moment, lambda *arguments, **options: os._exit(9))
    child = multiprocessing.get_context("fork").Process(target=checkpoint.save, args=(tmp_path, 2, *run, {}))
    child.start()
    child.join()
    assert child.exitcode == 9
    assert (tmp_path / ".step-2.partial" / "model.safetensors").exists()  # it was in the middle
    monkeypatch.undo()
    newest = keep.usable(tmp_path, no_words)
    assert newest == tmp_path / "step-1"
    assert checkpoint.load(newest, run[0].model, run[1]).step == 1
    checkpoint.save(tmp_path, 2, *run, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


@contextmanager
def disk_full(limit: int) -> Iterator[None]:
    """The system refuses every write beyond `limit` bytes of a file, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [10, 10_000])
def test_a_full_disk_is_one_sentence_and_leaves_no_half(tmp_path: Path, limit: int) -> None:
    run = start()
    train(*run, range(1))
    checkpoint.save(tmp_path, 1, *run, {})
    message = r"cannot write checkpoint '.*step-2' \(.*\); the previous one is intact: free some space"
    with pytest.raises(InputError, match=message), disk_full(limit):
        checkpoint.save(tmp_path, 2, *run, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot write checkpoint '.*file/step-1' \(.*Not a directory"):
        checkpoint.save(tmp_path / "file", 1, *start(), {})


def test_a_checkpoint_of_another_model_or_optimizer_is_refused(tmp_path: Path) -> None:
    language_model, optimizer = start()
    train(language_model, optimizer, range(1))
    path = checkpoint.save(tmp_path, 1, language_model, optimizer, {})
    half = torch.optim.AdamW(list(language_model.model.parameters())[:3])
    with pytest.raises(InputError, match=r"cannot be read \(.*parameter group.*\); resume from another one"):
        checkpoint.load(path, language_model.model, half)
    next(language_model.model.parameters()).requires_grad_(False)
    with pytest.raises(InputError, match=r"belongs to a model with other parameters; resume with its own settings"):
        checkpoint.load(path, language_model.model, optimizer)


# ------------------------------------------------------------------------------------------------ damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "name", "reason"),
    [
        (cut, "model.safetensors", r"model.safetensors has \d+ of \d+ bytes"),
        (cut, checkpoint.TENSORS, r"trainer.safetensors has \d+ of \d+ bytes"),
        (flip, "model.safetensors", "model.safetensors is not what was written: its checksum differs"),
        (flip, checkpoint.TRAINER, "trainer.json is not what was written: its checksum differs"),
        (Path.unlink, "config.json", "config.json is missing"),
        (Path.unlink, "manifest.json", "manifest.json is missing or broken"),
        (cut, "manifest.json", "manifest.json is missing or broken"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    tmp_path: Path, harm: Callable[[Path], None], name: str, reason: str
) -> None:
    run = start()
    for step in (1, 2):
        checkpoint.save(tmp_path, step, *run, {}, keep_last=2)
    harm(tmp_path / "step-2" / name)
    said: list[str] = []
    assert keep.usable(tmp_path, said.append) == tmp_path / "step-1"
    (sentence,) = said
    assert re.search(rf"step-2' is damaged \({reason}\) and is now called damaged-step-2; using step-1", sentence)
    checkpoint.save(tmp_path, 2, *run, {}, keep_last=2)  # its place is free
    assert names(tmp_path) == ["damaged-step-2", "step-1", "step-2"]


def test_without_a_whole_checkpoint_the_run_says_so(tmp_path: Path) -> None:
    run = start()
    for step in (1, 2):
        cut(checkpoint.save(tmp_path, step, *run, {}, keep_last=2) / "model.safetensors")
    message = r"no checkpoint in '.*' is whole \(step-2: model.* bytes; step-1: model.* bytes\); start again"
    with pytest.raises(InputError, match=message):
        keep.usable(tmp_path, no_words)
    assert names(tmp_path) == ["step-1", "step-2"]


# ------------------------------------------------------------------------------------------------ what is in one


def test_random_states_go_on_where_they_were(tmp_path: Path) -> None:
    run = start()
    torch.manual_seed(3), random.seed(4), np.random.seed(5)
    random.gauss(0, 1), np.random.normal()  # both keep a second number for the next call
    path = checkpoint.save(tmp_path, 1, *run, {})

    def draw() -> list[float]:
        return [torch.rand(()).item(), random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand()]

    expected = draw()
    assert draw() != expected
    checkpoint.load(path, run[0].model, run[1])
    assert draw() == expected


def test_adapters_are_saved_without_the_frozen_model(tmp_path: Path) -> None:
    pytest.importorskip("peft")

    def adapted(seed: int) -> tuple[LanguageModel, torch.optim.Optimizer]:
        language_model = add_lora(tiny_model(0, "bfloat16"), 2, seed)
        return language_model, torch.optim.AdamW(
            [p for p in language_model.model.parameters() if p.requires_grad], 1e-2
        )

    straight = adapted(1)
    train(*straight, range(4))
    first = adapted(1)
    train(*first, range(2))
    path = checkpoint.save(tmp_path, 2, *first, {})
    assert (path / "adapter_model.safetensors").exists() and not (path / "model.safetensors").exists()
    second = adapted(2)
    checkpoint.load(path, second[0].model, second[1])
    train(*second, range(2, 4))
    assert torch.equal(weights(second[0]), weights(straight[0]))


def test_any_nested_state_comes_back_as_it_was() -> None:
    state = {
        0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(3).to(torch.bfloat16)},
        "lr": [1e-3, math.inf, -math.inf],
        "betas": (0.9, 0.999),
        "flags": (None, True, 7, "seven"),
        "dtype": torch.bfloat16,
        "empty": [{}, (), torch.zeros(0, 2)],
        "$": {"tensor": "not one"},
    }
    plain, tensors = take_apart(state, "x")
    back = put_together(json.loads(json.dumps(plain, allow_nan=False)), tensors)
    assert repr(back) == repr(state) and all(type(a) is type(b) for a, b in zip(back, state, strict=True))
    assert math.isnan(put_together(take_apart(math.nan, "x")[0], {}))
    assert torch.equal(back[0]["exp_avg"], state[0]["exp_avg"]) and back["empty"][2].shape == (0, 2)  # type: ignore
    with pytest.raises(InputError, match=r"x.0.hook is a function, which a checkpoint cannot hold; keep plain values"):
        take_apart([{"hook": no_words}], "x")
    with pytest.raises(InputError, match="unknown kind of value 'pickle'; use the version of etr that saved it"):
        put_together({"pickle": "gASV"}, {})


def test_quantised_optimizer_state_comes_back_as_it_was() -> None:
    """Through JSON and a plain dictionary of tensors: made directly, since the optimizer's first step compiles."""
    kind = pytest.importorskip("torchao.optim.subclass_8bit").OptimState8bit
    table, scale = torch.linspace(-1, 1, 256), torch.tensor([0.5, 2.0])
    old = kind(torch.arange(512).remainder(256).to(torch.uint8), scale, table, True, torch.bfloat16)
    plain, tensors = take_apart({"exp_avg": old}, "x")
    assert all(type(value) is torch.Tensor for value in tensors.values())
    new = put_together(json.loads(json.dumps(plain)), tensors)["exp_avg"]
    assert type(new) is kind and new.dtype == torch.bfloat16 and new.signed
    expected = table[torch.arange(512).remainder(256)] * scale.repeat_interleave(256)
    assert torch.equal(new.dequantize(torch.float32), expected)


def test_a_checkpoint_names_the_versions_that_wrote_it(tmp_path: Path) -> None:
    run = start()
    found = checkpoint.load(checkpoint.save(tmp_path, 1, *run, {}, engine_version=7), run[0].model, run[1])
    assert found.engine_version == 7
    assert found.versions["etr"] == etr.__version__ and found.versions["torch"] == torch.__version__
