"""Folders of LoRA adapters, such as the checkpoints of a run with `lora_rank`: not a model without their base model."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.llm.weights import quiet
from etr.runs import is_run, read_config

ADAPTERS = "adapter_config.json"  # a folder with this file holds adapters
BASE = "base_model_name_or_path"


def base_of(folder: Path) -> str:
    """The base model of adapters: the folder or hub id that peft noted, or what the run around them was started with.

    Raises InputError when neither says so.
    """
    noted = str(read_json(folder / ADAPTERS).get(BASE) or "")
    if noted and Path(noted).is_dir():
        return noted
    run = folder.parent.parent  # of runs/my-run/checkpoints/step-20
    started = str(read_config(run).get("settings", {}).get("model") or "") if is_run(run) else ""
    if not (started or noted):
        raise InputError(no_base(folder, "nothing says of which model"))
    return started or noted


def no_base(folder: Path, reason: str) -> str:
    """The sentence for adapters whose base model is not to be had."""
    return f"'{folder}' holds LoRA adapters, and {reason}; name its folder or hub id as {BASE} in their {ADAPTERS}"


def merged(base: Any, folder: Path) -> Any:
    """The base model with the adapters added to its weights, which are changed. Raises InputError without peft."""
    if importlib.util.find_spec("peft") is None:
        raise InputError(f"'{folder}' holds LoRA adapters, which need peft: pip install peft")
    from peft import PeftModel

    with quiet():
        model: Any = PeftModel.from_pretrained(base, str(folder)).merge_and_unload()
    model.name_or_path = model.config._name_or_path = str(folder)  # what peft will note as the base of further adapters
    return model.eval()
