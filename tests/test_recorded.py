"""Records on disk: every bit comes back, nothing malformed gets in, and the update that is kept is the right one."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from records import prepared_batch, recorded, update
from safetensors.torch import load_file, save_file
from torch import Tensor

import etr
from etr.batch import SHAPES, Region
from etr.errors import InputError
from etr.llm.run import record_first
from etr.provenance import loss_hash
from etr.recipe import load_recipe
from etr.recorded import FILE, RECORD, Recorded, load, save, tensors_of
from etr.recording import ENOUGH, LOOKS, UPDATES, Recording


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in type, shape and every bit, NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def test_every_field_comes_back_bit_for_bit(tmp_path: Path) -> None:
    recipe = load_recipe("etr", {"micro": 0.3})
    batch = prepared_batch(recipe.objective)
    shape = batch.log_probs.shape
    rng = torch.Generator().manual_seed(1)
    columns = {"own": torch.rand(shape, generator=rng), "row.mean": torch.rand(shape[:1], generator=rng).double()}
    batch = dataclasses.replace(batch, columns=columns, weights=torch.rand(shape, generator=rng))
    given = Recorded(
        recipe, batch, torch.tensor(16), (slice(0, 5), slice(5, 16)), torch.tensor(-0.5), torch.rand(shape),
        torch.rand(shape), torch.full(shape, torch.inf), "verl", {"dp_size": 2, "mode": "x", "none": None}, "abc",
        {"torch": "2"},
    )  # fmt: skip
    save(tmp_path / "r", given)
    found = load(tmp_path / "r")
    old, new = tensors_of(given.batch), tensors_of(found.batch)
    assert set(SHAPES) - set(new) == set() and {"group.var", "columns.own", "columns.row.mean"} <= set(new)
    assert list(old) == list(new) and all(same_bits(old[name], new[name]) for name in old)
    assert new["log_probs"].isnan().any() and new["weights"].shape == shape
    for name in ("denominator", "loss", "gradient", "low", "high"):
        assert same_bits(getattr(given, name), getattr(found, name))
    for name in ("parts", "host", "settings", "loss_hash", "versions"):
        assert getattr(given, name) == getattr(found, name)
    assert found.recipe.objective == recipe.objective and found.recipe.as_dict() == recipe.as_dict()


def test_tensors_that_share_memory_are_stored(tmp_path: Path) -> None:
    """On-policy log_probs and old_log_probs are one tensor."""
    recipe = load_recipe("grpo")
    batch = prepared_batch(recipe.objective)
    batch = dataclasses.replace(batch, old_log_probs=batch.log_probs)
    update(Recording(tmp_path / "r", recipe, "llm"), batch)
    assert load(tmp_path / "r").moved == 0


def rewrite(path: Path, about: Any = None, drop: str = "", **tensors: Tensor) -> None:
    """Write the record again with other metadata or tensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        known = json.loads(file.metadata()[RECORD])
    stored = {name: value for name, value in {**load_file(path), **tensors}.items() if name != drop}
    save_file(stored, path, {RECORD: json.dumps(known | about if isinstance(about, dict) else about or known)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"drop": "gradient"}, "lacks the tensor gradient"),
        ({"drop": "old_log_probs"}, "lacks the tensors old_log_probs"),
        ({"drop": "group.var"}, "lacks the tensors group.var"),
        ({"gradient": torch.zeros(2, 5)}, "gradient has shape (2, 5), but must have (16, 5)"),
        ({"loss": torch.zeros(3)}, "loss has shape (3,)"),
        ({"old_log_probs": torch.zeros(16, 4)}, "old_log_probs has shape (16, 4)"),
        ({"entrpy": torch.zeros(16, 5)}, "unknown tensor 'entrpy'; did you mean 'entropy'?"),
        ({"group.men": torch.zeros(16)}, "did you mean 'group.mean'?"),
        ({"about": {"format": 2}}, "has format 2, but this etr reads format 1"),
        ({"about": {"parts": [[0, 8], [9, 16]]}}, "do not make up 16 rows"),
        ({"about": {"parts": [[0]]}}, "cannot be used"),
        ({"about": {"host": None}}, "'host' is None in its metadata"),
        ({"about": "no record"}, "is no record of a batch"),
        ({"about": {"recipe": {"objective": {"name": "etr", "mirco": 1}}}}, "did you mean 'micro'?"),
        ({"about": {"recipe": {"objective": {"name": "etrr"}}}}, "did you mean 'etr'?"),
        ({"about": {"recipe": {"objective": {"name": "/gone/mine.py:Mine"}}}}, "no file '/gone/mine.py'"),
    ],
)
def test_anything_malformed_is_one_sentence(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recorded(load_recipe("etr"), tmp_path / "r")
    rewrite(tmp_path / "r", **change)
    with pytest.raises(InputError) as error:
        load(tmp_path / "r")
    assert words in str(error.value) and str(tmp_path / "r") in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_records(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no record"):
        load(tmp_path / "none")
    (tmp_path / "text").write_text("not a record, whatever its name says")
    with pytest.raises(InputError, match="no readable safetensors file"):
        load(tmp_path / "text")
    save_file({"weight": torch.ones(2)}, tmp_path / "weights")
    with pytest.raises(InputError, match="no record of a batch"):
        load(tmp_path / "weights")
    recorded(load_recipe("etr"), tmp_path / "r")
    (tmp_path / "cut").write_bytes((tmp_path / "r").read_bytes()[:-100])
    with pytest.raises(InputError, match="no readable safetensors file"):
        load(tmp_path / "cut")


def test_a_class_of_a_moved_folder_is_found_beside_its_record(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    text = "from dataclasses import dataclass\nfrom etr.objectives.grpo import GRPO\n@dataclass(frozen=True)\n"
    (old / "moved_along.py").write_text(text + "class Mine(GRPO):\n    eps_high: float = 0.31\n")
    recorded(load_recipe(f"{old}/moved_along.py:Mine"), old / "r")
    del sys.modules["moved_along"]
    old.rename(new)
    assert vars(load(new / "r").recipe.objective)["eps_high"] == 0.31
    (new / "moved_along.py").unlink()
    with pytest.raises(InputError, match=r"there is no file .*moved_along\.py"):
        load(new / "r")


def test_a_kill_in_the_middle_of_a_write_leaves_no_half_file(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from etr.recipe import load_recipe; import etr.files\n"
        "etr.files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from records import recorded; recorded(load_recipe('etr'), Path(sys.argv[1]))"
    )
    tests = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], cwd=tests, check=False)
    assert done.returncode == -signal.SIGKILL and any(tmp_path.iterdir())  # it was writing
    assert not (tmp_path / "r").exists()
    recorded(load_recipe("etr"), tmp_path / "r")


def moved_by(nats: float) -> Any:
    """A batch whose every kept token has that log ratio; its recipe is GRPO's."""
    batch = prepared_batch(etr.get("grpo"))
    return dataclasses.replace(batch, log_probs=batch.old_log_probs + nats)


def test_the_record_is_of_the_first_update_that_shows_a_region(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "r", load_recipe("grpo"), "llm", {"lr": 0.1})
    update(recording, moved_by(0.0))
    assert load(tmp_path / "r").moved == 0 and recording.active  # there is a record from the first update on
    update(recording, moved_by(1e-6))  # the rounding of a host
    update(recording, moved_by(1e-7))  # less: not written
    assert load(tmp_path / "r").settings["update"] == 2
    gradient = update(recording, moved_by(0.1))
    update(recording, moved_by(0.3))
    found = load(tmp_path / "r")
    assert found.moved == pytest.approx(0.1, abs=1e-6) and found.moved >= ENOUGH and not recording.active
    assert found.settings == {"lr": 0.1, "scale": 1.0, "device": "cpu", "update": 4} and found.host == "llm"
    assert torch.equal(found.gradient, gradient) and gradient.abs().sum() > 0
    assert found.versions["torch"] == torch.__version__ and len(found.loss_hash) == 64


def test_what_is_recorded_is_grpo_by_hand(tmp_path: Path) -> None:
    """Inside the region c = r·A; the mean per response gives a token 1 / (B·T_i)."""
    recording = Recording(tmp_path / "r", load_recipe("grpo"), "llm")
    update(recording, moved_by(0.1))
    found = load(tmp_path / "r")
    batch = found.batch
    lengths = batch.response_mask.sum(-1, keepdim=True)
    by_hand = -torch.exp(torch.tensor(0.1)) * batch.advantages[:, None] / (16 * lengths)
    torch.testing.assert_close(found.gradient, torch.where(batch.response_mask, by_hand, 0.0))
    torch.testing.assert_close(found.loss, found.gradient.sum())
    assert found.denominator == 16 and [part.stop for part in found.parts] == [4, 8, 12, 16]
    torch.testing.assert_close(found.low[batch.response_mask], torch.full((int(lengths.sum()),), 0.8))


def test_a_policy_that_never_moves_is_watched_only_so_long(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "r", load_recipe("grpo"), "llm")
    for count in range(1, UPDATES + 3):
        update(recording, moved_by(0.0))
        assert recording.active == (count < UPDATES)
    assert load(tmp_path / "r").settings["update"] == 1


def test_updates_without_a_gradient_wait_for_one_that_has_it(tmp_path: Path) -> None:
    """All groups are right or all are wrong at first: A = 0, and momentum may still move the policy."""
    recording = Recording(tmp_path / "r", load_recipe("grpo"), "llm")
    nothing = dataclasses.replace(moved_by(0.2), advantages=torch.zeros(16))
    for _ in range(UPDATES + 1):
        update(recording, nothing)
    assert load(tmp_path / "r").settings["update"] == 1 and recording.active
    update(recording, moved_by(0.0))
    assert load(tmp_path / "r").settings["update"] == UPDATES + 2
    update(recording, moved_by(0.1))
    assert load(tmp_path / "r").gradient.any() and not recording.active
    recording = Recording(tmp_path / "never", load_recipe("grpo"), "llm")
    for _ in range(LOOKS):
        assert recording.active
        update(recording, nothing)
    assert not recording.active


def test_a_data_parallel_factor_is_not_in_the_record(tmp_path: Path) -> None:
    recipe = load_recipe("etr")
    one, two = recorded(recipe, tmp_path / "1"), recorded(recipe, tmp_path / "2", scale=2.0)
    assert torch.equal(one.gradient, two.gradient) and two.settings["scale"] == 2.0
    torch.testing.assert_close(recorded(recipe, tmp_path / "3", scale=3.0).gradient, one.gradient)


def test_a_record_too_big_leaves_micro_batches_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recorded(load_recipe("grpo"), tmp_path / "whole")
    size = sum(value.numel() * value.element_size() for value in tensors_of(whole.batch).values())
    monkeypatch.setattr("etr.recording.MOST_BYTES", size // 2)
    found = recorded(load_recipe("grpo"), tmp_path / "half")
    assert found.settings["micro_batches_left_out"] == 2 and found.parts == (slice(0, 4), slice(4, 8))
    assert torch.equal(found.gradient, whole.gradient[:8]) and found.denominator == 16  # of the whole update


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "missing" / "r", load_recipe("grpo"), "llm")
    with pytest.warns(RuntimeWarning, match="the run goes on"):
        update(recording, moved_by(0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update(recording, moved_by(0.1))
    assert not recording.active


def test_a_host_shows_one_micro_batch_at_a_time(tmp_path: Path) -> None:
    """Its bounds may be one number for all tokens, its denominator a plain one."""
    recording = Recording(tmp_path / "r", load_recipe("grpo"), "verl", {"dp_size": 2})
    batch = moved_by(0.2).rows(slice(4, 8))
    bounds = Region(torch.tensor(0.8), torch.tensor(1.2))
    recording.observe(batch, torch.tensor([0.25]), torch.ones_like(batch.log_probs), bounds)
    recording.finish(32.0)
    found = load(tmp_path / "r")
    assert found.loss == 0.25 and found.denominator == 32 and found.parts == (slice(0, 4),)
    assert found.low.shape == (4, 5) and not recording.active


OWN = (
    "from dataclasses import dataclass\nfrom etr.objectives.grpo import GRPO\n"
    "@dataclass(frozen=True)\nclass Mine(GRPO):\n"
)


def test_the_hash_is_of_the_code_that_was_loaded_and_an_edit_kills_no_run(tmp_path: Path) -> None:
    file = tmp_path / "edited_later.py"
    file.write_text(f"{OWN}    eps_high: float = 0.2\n")
    recipe = load_recipe(f"{file}:Mine")
    loaded = loss_hash(recipe)
    recording = Recording(tmp_path / "r", recipe, "llm")
    file.write_text(f"{OWN}    eps_high: float = 0.2\n    def surrogate(self, *a):\n        return 0 * a[1]\n")
    assert loss_hash(recipe) != loaded
    update(recording, prepared_batch(recipe.objective))
    assert load(tmp_path / "r").loss_hash == loaded
    file.write_text("def broken(")
    with pytest.warns(RuntimeWarning, match="SyntaxError.*the run goes on"):
        recording = Recording(tmp_path / "r2", recipe, "llm")
    update(recording, prepared_batch(recipe.objective))
    assert not recording.active and not (tmp_path / "r2").exists()


@pytest.mark.parametrize("place", ["tensors_of", "largest_move", "save", "batch_of"])
def test_no_error_of_a_recording_ends_a_run(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    recording = Recording(tmp_path / "r", load_recipe("grpo"), "llm")
    monkeypatch.setattr(f"etr.recording.{place}", fail)
    with pytest.warns(RuntimeWarning, match="RuntimeError: out of memory; the run goes on"):
        gradient = update(recording, moved_by(0.1))
    assert not recording.active and gradient.any()


@pytest.mark.parametrize(("nats", "again"), [(0.0, True), (0.1, False)])
def test_a_resumed_run_records_until_a_region_shows(nats: float, again: bool, tmp_path: Path) -> None:
    def trainer() -> Any:
        model = SimpleNamespace(model=SimpleNamespace(dtype=torch.float32))
        grader = SimpleNamespace(grader=SimpleNamespace(bounds=(0.0, 1.0)))
        fields = {"collector": grader, "config": SimpleNamespace(overlong="keep"), "recipe": load_recipe("grpo")}
        return SimpleNamespace(world=SimpleNamespace(main=True, size=1), language_model=model, recording=None, **fields)

    first = trainer()
    record_first(first, tmp_path)
    update(first.recording, moved_by(nats))
    resumed = trainer()
    record_first(resumed, tmp_path)
    assert (resumed.recording is not None) == again
    assert load(tmp_path / FILE).settings["reward_bounds"] == [0.0, 1.0]
    (tmp_path / FILE).write_text("damaged")
    record_first(resumed, tmp_path)
    assert resumed.recording is not None
