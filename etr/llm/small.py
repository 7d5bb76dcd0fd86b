"""The pieces of small language models: a tokenizer with one token a character, and a Llama with random weights."""

from __future__ import annotations

from typing import Any

import torch

SPECIAL = ("<pad>", "<eos>", "<unk>")


def character_tokenizer(characters: str) -> Any:
    """A tokenizer with one token for each of `characters`; any other character is `<unk>`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate((*SPECIAL, *characters))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )  # fmt: skip


def random_llama(tokenizer: Any, seed: int) -> Any:
    """A two-layer Llama of width 64 in evaluation mode, about 80,000 float32 weights fixed by the seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
