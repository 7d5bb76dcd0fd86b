"""The work that `etr bench llm` gives to every contender, and the model folder on which it is the same for all."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QUESTION = "{} apples and {} pears, {} of each sold. How many are left?"
QUESTIONS = tuple(QUESTION.format(24 + i, 15 + i, 11 + i % 4) for i in range(64))  # about 45 tokens with the template
NEVER = "<filename>"  # a token of SmolLM2's vocabulary that it never writes outside code repositories


@dataclass(frozen=True)
class Work:
    """One rollout and its updates: `prompts` questions, `group_size` answers each of exactly `tokens` new tokens.

    iterations: measured ones, after one to warm up; micro_batch_tokens: ours, two groups a pass; peer_rows,
    peer_checkpointing: TRL's per_device_train_batch_size and gradient_checkpointing.
    """

    model: str
    engine: str = "transformers"
    prompts: int = 8
    group_size: int = 8
    tokens: int = 32
    updates: int = 2
    iterations: int = 3
    dtype: str = "bfloat16"
    device: str = "cpu"
    threads: int = 1
    micro_batch_tokens: int = 640
    compile_layers: bool = True
    peer_rows: int = 16
    peer_checkpointing: bool = False
    questions: tuple[str, ...] = QUESTIONS


@dataclass(frozen=True)
class Size:
    """A step's sizes; what `bench_growth` doubles is named like the field."""

    group_size: int = 8
    tokens: int = 64
    vocabulary: int = 8192
    prompts: int = 4
    hidden: int = 128
    layers: int = 4
    repeats: int = 3
    micro_batch_tokens: int = 1024
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1


def endless(source: Path, folder: Path) -> Path:
    """A copy of SmolLM2's folder whose end token is one that is never sampled, so that all answers are of one length.

    The weights are linked, not copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copy(file, folder)
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    end = next(token["id"] for token in added if token["content"] == NEVER)
    _change(folder / "tokenizer_config.json", {"eos_token": NEVER})
    for name in ("generation_config.json", "config.json"):
        _change(folder / name, {"eos_token_id": end})
    return folder


def write_questions(path: Path, questions: tuple[str, ...]) -> Path:
    """The questions as a JSONL task; the reward does not look at answers."""
    path.write_text("".join(json.dumps({"prompt": question, "answer": "-"}) + "\n" for question in questions))
    return path


def vowels(prompt: object, completion: str, answer: str) -> float:
    """Share of vowels: a reward that costs nothing and differs within a group."""
    return sum(completion.count(letter) for letter in "aeiou") / max(1, len(completion))


def _change(path: Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def random_model(size: Size, folder: Path) -> None:
    """A small Llama with random weights and one token for each of `vocabulary` words, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i for i in range(3, size.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers, num_attention_heads=4, max_position_embeddings=4096, pad_token_id=0,
        eos_token_id=1, bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
