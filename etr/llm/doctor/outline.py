"""What a model's config and tokenizer say, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.llm.models import TINY, load_model
from etr.llm.toy_tasks import TOY_LLAMA
from etr.llm.weights import SMOLLM2, quiet, smollm2_folder


@dataclass(frozen=True)
class Outline:
    """A model's config and tokenizer."""

    name: str
    config: Any
    tokenizer: Any

    @property
    def text(self) -> Any:
        """The config of the part that reads and writes text."""
        return self.config.get_text_config()

    def cache_bytes(self, bytes_each: int) -> int:
        """Keys and values of one token in all layers: 2 · layers · key-value heads · head width numbers."""
        text = self.text
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(2 * text.num_hidden_layers * heads * width * bytes_each)


def outline(name: str) -> Outline:
    """Config and tokenizer of a model by the names of `load_model`. Raises InputError where neither can be read."""
    if name in (TINY, TOY_LLAMA):  # 80,000 weights, made by code
        small = load_model(name)
        return Outline(name, small.model.config, small.tokenizer)
    from transformers import AutoConfig, AutoTokenizer

    folder = smollm2_folder() if name == SMOLLM2 else Path(name).expanduser()
    source = str(folder) if folder.exists() else name
    try:
        options = {"local_files_only": folder.exists() or not _on_hub(name)}
        with quiet():
            config = AutoConfig.from_pretrained(source, **options)
            return Outline(name, config, AutoTokenizer.from_pretrained(source, **options))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise InputError(
            f"the config or tokenizer of model '{name}' cannot be read ({reason}); give a Hugging Face folder, a hub "
            f"id or {SMOLLM2}"
        ) from error


def _on_hub(name: str) -> bool:
    """Whether the hub answers for this name: one quick question, where a reader would try again for minutes."""
    from huggingface_hub import model_info

    try:
        model_info(name, timeout=10)
    except Exception:  # the hub client's network errors share no base class across its versions
        return False
    return True
