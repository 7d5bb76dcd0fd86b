"""Tiny models that vLLM can run on a CPU: its attention kernels there begin at heads of size 32."""

from __future__ import annotations

import torch

from etr.llm.models import TINY_CHARACTERS, LanguageModel
from etr.llm.small import character_tokenizer


def wide_heads(seed: int = 0, padding: int = 6, tied: bool = True, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A random two-layer Llama with two heads of size 32, and rows of its head that no token uses."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = character_tokenizer(TINY_CHARACTERS)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + padding, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=256, pad_token_id=0, eos_token_id=1, bos_token_id=None,
        tie_word_embeddings=tied,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval().to(dtype)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)  # some tokens are likelier than others
    return LanguageModel(model, tokenizer, "wide-heads")


def disturb(language_model: LanguageModel, size: float, seed: int = 1) -> None:
    """Add noise to every weight, as an optimiser step would change every weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in language_model.model.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))
