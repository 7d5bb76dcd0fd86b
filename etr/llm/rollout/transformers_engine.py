"""The embedded engine: samples in the process and on the very weights of the trainer, so a sync copies nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etr.llm.models import LanguageModel
from etr.llm.prompts import plain_attention
from etr.llm.rollout.base import EngineSettings, Rollout, left_pad, pack, vocabulary_size
from etr.llm.rollout.decode import Sampler, decode, generate, pure_sampling
from etr.llm.rollout.seeds import check_seeds, uniforms


@dataclass
class TransformersEngine:
    """Pure sampling with the transformers model itself; completions are bit-equal from run to run on a CPU."""

    language_model: LanguageModel
    max_new_tokens: int = 16
    temperature: float = 1.0
    version: int = 0
    name: str = "transformers"

    def __post_init__(self) -> None:
        EngineSettings(self.max_new_tokens, self.temperature)  # refuses what cannot be sampled with

    def generate(self, prompts: list[list[int]], group_size: int, seeds: Sequence[int]) -> Rollout:
        """Sample as `RolloutEngine.generate` says; no global random state is used."""
        lm = self.language_model
        ids, mask = left_pad(prompts, lm.pad_id, lm.device)
        check_seeds(seeds, len(prompts), group_size)
        sampler = Sampler(lm, self.temperature, vocabulary_size(lm))
        numbers = uniforms(seeds, self.max_new_tokens)
        end = torch.tensor(lm.eos_ids, device=lm.device)
        with torch.no_grad(), pure_sampling(lm):
            sample = decode if plain_attention(lm.model) else generate
            tokens, log_probs = sample(sampler, ids, mask, group_size, numbers, end)
        ids, mask = (x.repeat_interleave(group_size, dim=0) for x in (ids, mask))
        return pack(torch.cat([ids, tokens], dim=1), mask, lm.eos_ids, log_probs)

    def score(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """log p of each token but the first, temperature 1, over the model's whole vocabulary."""
        with torch.no_grad(), pure_sampling(self.language_model):
            return [sequence_log_probs(self.language_model, sequence) for sequence in sequences]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Note the version; the weights are shared, so none is read."""
        self.version = version

    def sleep(self) -> None:
        """Nothing to free."""

    def wake(self) -> None:
        """Nothing to fetch."""

    def close(self) -> None:
        """Nothing to let go of."""


def sequence_log_probs(language_model: LanguageModel, sequence: list[int]) -> Tensor:
    """log p(token t | tokens before) for t = 1.., from the model's own logits, float32 [L − 1] on the CPU."""
    ids = torch.tensor([sequence], device=language_model.device)
    logits = language_model.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    log_probs: Tensor = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return log_probs.cpu()
