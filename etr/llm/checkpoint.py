"""Checkpoints: one folder a step, a normal Hugging Face model folder that also holds what training needs to go on.

    model.safetensors, config.json, ...    the weights (with LoRA adapter_model.safetensors instead) and the tokenizer
    trainer.safetensors, trainer.json      optimiser with master weights, objective state, random states, versions
    manifest.json                          size and checksum of each file

Nothing is unpickled. A checkpoint is written into a hidden folder and appears by one rename, and older ones go only
after that: a kill at any moment leaves a usable one. Prompts and samples are a function of (seed, step), so the step is
the sampler's whole position.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import etr
from etr.errors import InputError
from etr.files import read_json, to_json
from etr.llm import keep, random_states
from etr.llm.export import whole
from etr.llm.lora import adapter_state, has_lora, load_adapter_state
from etr.llm.manifest import write_manifest
from etr.llm.models import LanguageModel
from etr.llm.nested import put_together, take_apart
from etr.llm.weights import quiet

TRAINER, TENSORS = "trainer.json", "trainer.safetensors"
PACKAGES = ("torch", "transformers", "safetensors", "peft", "torchao", "vllm", "numpy")


class Checkpoint(NamedTuple):
    """What a checkpoint gives back besides weights, optimiser and random states.

    step: the last finished one; state: of objective and controllers; engine_version: of the weights that the rollout
    engine had; versions: of the packages that wrote it.
    """

    step: int
    state: dict[str, Tensor]
    engine_version: int
    versions: dict[str, str]


def save(
    folder: Path,
    step: int,
    language_model: LanguageModel,
    optimizer: Any,
    state: Mapping[str, Any],
    *,
    engine_version: int = 0,
    keep_last: int = 1,
    writes: bool = True,
) -> Path:
    """Write `folder`/step-<step>, then delete all but the newest `keep_last` and the best; returns the new one.

    optimizer: anything with state_dict(); state: of objective and controllers, plain values and tensors nested at will;
    writes: False on processes that only help to gather spread tensors. Raises InputError when the checkpoint exists
    already or cannot be written (full disk, no permission); the previous ones are intact then.
    """
    target, partial = folder / f"step-{step}", folder / f".step-{step}.partial"
    if target.exists() and writes:
        raise InputError(f"checkpoint '{target}' exists already; choose another folder")
    values = {"optimizer": optimizer.state_dict(), "objective": dict(state), "random": random_states.read()}
    plain, tensors = take_apart(values | _adapters(language_model.model), "trainer")
    weights = _gathered(language_model.model)
    if not writes:
        return target
    record = {"step": step, "engine_version": engine_version, "versions": versions(), "values": plain}
    record["parameters"] = _parameters(language_model.model)
    try:
        _make_room(partial)
        _write(partial, language_model, weights, record, tensors)
        _sync(partial)
        partial.replace(target)
        keep.set_link(folder)
        keep.prune(folder, keep_last)
    except (OSError, SafetensorError, InputError) as error:
        raise InputError(
            f"cannot write checkpoint '{target}' ({error}); the previous one is intact: free some space or mend "
            "the permissions, and resume"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def load(path: Path, model: Any, optimizer: Any) -> Checkpoint:
    """Put weights, optimiser state and random states of the checkpoint `path` in their places.

    Raises InputError when the checkpoint is damaged, or belongs to another model or optimizer.
    """
    record = read_json(path / TRAINER)
    if record.get("parameters") != _parameters(model):
        raise InputError(f"checkpoint '{path}' belongs to a model with other parameters; resume with its own settings")
    try:
        values = put_together(record["values"], load_file(path / TENSORS, device=str(model.device)))
        _load_weights(path, model, values)
        optimizer.load_state_dict(values["optimizer"])
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint '{path}' cannot be read ({reason}); resume from another one") from error
    random_states.write(values["random"])
    return Checkpoint(record["step"], values["objective"], record["engine_version"], record["versions"])


def versions() -> dict[str, str]:
    """Versions of the packages that decide the bits of a run."""
    found = {"etr": etr.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _make_room(partial: Path) -> None:
    """An empty folder to write into, without what killed runs left beside it."""
    for stale in partial.parent.glob(".step-*.partial"):
        shutil.rmtree(stale)
    partial.mkdir(parents=True)


def _write(
    folder: Path,
    language_model: LanguageModel,
    weights: dict[str, Tensor] | None,
    record: dict[str, Any],
    tensors: dict[str, Tensor],
) -> None:
    model = language_model.model
    options: dict[str, Any] = {} if weights is None else {"state_dict": weights}
    with quiet():
        if _adapters(model):
            options["save_embedding_layers"] = False  # LoRA leaves them alone, and peft would ask the hub about them
            model.config.save_pretrained(folder)
        model.save_pretrained(folder, **options)  # knows which weights are tied
        language_model.tokenizer.save_pretrained(folder)
    save_file(tensors, folder / TENSORS)
    (folder / TRAINER).write_text(to_json(record), encoding="utf-8")
    write_manifest(folder)


def _adapters(model: Any) -> dict[str, Any]:
    """The trained tensors of a model with LoRA; nothing for a model that is trained as a whole."""
    if not has_lora(model):
        return {}
    return {"adapters": adapter_state(model)}


def _gathered(model: Any) -> dict[str, Tensor] | None:
    """The weights of a model that is spread over processes, whole; None for any other, which saves itself."""
    if not any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
        return None
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied ones once
    return {name: whole(value) for name, value in model.state_dict().items() if name in own}


def _load_weights(path: Path, model: Any, values: dict[str, Any]) -> None:
    if "adapters" in values:
        load_adapter_state(model, values["adapters"])  # the rest is the frozen model, loaded by its name
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from transformers import AutoModelForCausalLM

    with quiet():
        saved = AutoModelForCausalLM.from_pretrained(path, dtype=model.dtype)
    # Unlike load_state_dict it also takes whole tensors for a model that is spread over processes.
    set_model_state_dict(model, saved.state_dict(), options=StateDictOptions(full_state_dict=True))


def _parameters(model: Any) -> list[list[Any]]:
    """Name and shape of each trained parameter, in the order in which an optimizer numbers them."""
    return [[name, list(p.shape)] for name, p in model.named_parameters() if p.requires_grad]


def _sync(folder: Path) -> None:
    """Bring the files to the disk before the rename that declares them whole and the deletion of their forerunner."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
