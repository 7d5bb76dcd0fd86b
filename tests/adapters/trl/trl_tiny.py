"""A tiny random model, questions and a reward: everything that a GRPOTrainer needs, without any download."""

from __future__ import annotations

import tempfile
from typing import Any

import torch

CHARACTERS = "0123456789+= "
LENGTH, GROUP, PROMPTS = 6, 4, 3


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<eos>": 0, **{character: place for place, character in enumerate(CHARACTERS, 1)}}
    raw = Tokenizer(models.WordLevel(words, unk_token="<eos>"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", pad_token="<eos>")


def model(seed: int = 0) -> Any:
    """A random Llama that ends about every fifth token, so that answers are ragged."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = LlamaConfig(
        vocab_size=len(CHARACTERS) + 1,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        num_attention_heads=2,
        **sizes,
    )
    found = LlamaForCausalLM(config)
    with torch.no_grad():
        found.lm_head.weight.mul_(4)  # some tokens are likelier than others
    return found


def even(completions: list[str], **_: Any) -> list[float]:
    """1 for an answer with an even number of some characters: 0/1, and random enough to differ within groups."""
    return [float(sum(text.count(mark) for mark in "02468+") % 2 == 0) for text in completions]


def trainer(recipe: Any, reward: Any = even, folder: str | None = None, seed: int = 0, **settings: Any) -> Any:
    """An ETRGRPOTrainer of `PROMPTS` prompts and `GROUP` answers each, for one optimiser step a generation or more."""
    from datasets import Dataset
    from trl import GRPOConfig

    from etr.adapters.trl import ETRGRPOTrainer
    from etr.adapters.trl_settings import arguments
    from etr.recipe import load_recipe

    recipe = load_recipe(recipe) if isinstance(recipe, str) else recipe
    parts = settings.get("steps_per_generation") or settings.get("gradient_accumulation_steps", 1)
    extra = {name: settings.pop(name) for name in ("record", "reward_range") if name in settings}
    fixed = {
        "use_cpu": True, "bf16": False, "report_to": "none", "seed": seed, "num_generations": GROUP,
        "max_completion_length": LENGTH, "per_device_train_batch_size": PROMPTS * GROUP // parts,
        "max_steps": 2, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-2, "disable_tqdm": True,
    }  # fmt: skip
    config = GRPOConfig(folder or tempfile.mkdtemp(), **{**fixed, **arguments(recipe), **settings})
    data = Dataset.from_dict({"prompt": [f"{a}+{b}=" for a in range(4) for b in range(6)]})
    return ETRGRPOTrainer(
        model(), reward, config, train_dataset=data, processing_class=tokenizer(), recipe=recipe, **extra
    )


def run(recipe: Any, **settings: Any) -> Any:
    """The trainer after its steps; its own log is in `state.log_history`."""
    found = trainer(recipe, **settings)
    found.train()
    return found
