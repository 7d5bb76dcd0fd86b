"""A checkpoint resumes exactly, is a normal model folder, and survives kills and full disks."""

from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from etr.errors import InputError
from etr.llm import checkpoint
from etr.llm.models import LanguageModel, load_model, tiny_model
from etr.llm.train import make_optimizer
from etr.recipe import METHODS, OptimizerSettings

pytest.importorskip("transformers")
STATE = {"bound": torch.tensor([0.2, 0.3], dtype=torch.float64), "count": torch.tensor(3)}


def start(seed: int = 0, lr: float = 1e-2, method: str = "adam") -> tuple[LanguageModel, torch.optim.Optimizer]:
    language_model = tiny_model(seed)
    return language_model, make_optimizer(OptimizerSettings(method, lr, weight_decay=0.1), language_model)


def train(language_model: LanguageModel, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        tokens = torch.randint(18, (4, 6), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        language_model.model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()


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
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    restored = checkpoint.load(newest, second[0].model, second[1])
    train(*second, range(3, 6))
    assert torch.equal(weights(second[0]), weights(straight[0]))
    assert restored.step == 3
    assert restored.tensors.keys() == STATE.keys()
    assert all(torch.equal(restored.tensors[key], STATE[key]) for key in STATE)
    assert all(restored.tensors[key].dtype == STATE[key].dtype for key in STATE)


def test_a_checkpoint_before_any_step_has_no_optimizer_state(tmp_path: Path) -> None:
    run = start()
    path = checkpoint.save(tmp_path, 0, *run, {})
    assert checkpoint.load(path, run[0].model, run[1]) == (0, {})
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


def test_only_the_newest_is_kept_and_other_files_are_left_alone(tmp_path: Path) -> None:
    run = start()
    (tmp_path / "step-1-notes").mkdir()
    (tmp_path / ".step-9.partial").mkdir()
    for step in (2, 10, 11):
        checkpoint.save(tmp_path, step, *run, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1-notes", "step-11"]
    (tmp_path / "step-9").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "step-11"
    assert checkpoint.latest(tmp_path / "none") is None


def test_a_finished_checkpoint_is_not_replaced(tmp_path: Path) -> None:
    run = start()
    checkpoint.save(tmp_path, 1, *run, {})
    with pytest.raises(InputError, match=r"checkpoint '.*step-1' exists already; choose another folder"):
        checkpoint.save(tmp_path, 1, *run, {})


@pytest.mark.parametrize("moment", ["save_file", "to_json", "_sync"])
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
    newest = checkpoint.latest(tmp_path)
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


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    language_model, optimizer = start()
    train(language_model, optimizer, range(1))
    path = checkpoint.save(tmp_path, 1, language_model, optimizer, {})
    half = torch.optim.AdamW(list(language_model.model.parameters())[:3])
    with pytest.raises(InputError, match=r"belongs to a model with other parameters; resume with its own settings"):
        checkpoint.load(path, language_model.model, half)
    for name in (checkpoint.TENSORS, "model.safetensors"):
        broken = Path(shutil.copytree(path, tmp_path / f"broken-{name}"))
        (broken / name).write_bytes((path / name).read_bytes()[:-100])
        with pytest.raises(InputError, match=r"cannot be read \(.*\); resume from another one"):
            checkpoint.load(broken, language_model.model, optimizer)
    (path / checkpoint.TRAINER).unlink()
    with pytest.raises(InputError, match=r"cannot read '.*trainer.json'"):
        checkpoint.load(path, language_model.model, optimizer)
