"""Sampling completions: a small protocol, so that another engine can take the place of transformers' `generate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.models import LanguageModel
from etr.llm.prompts import can_share_prompts, read_prompts


@dataclass(frozen=True)
class Rollout:
    """B completions of at most T tokens after left-padded prompts of width P.

    sequences and attention_mask are [B, P + T]; response_mask [B, T] is True up to and including the first end token,
    by position, since padding may share its id; finished [B] is False where the length limit cut a completion off.
    log_probs [B, T] are the engine's own, or None where the trainer's are the same.
    """

    sequences: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    finished: Tensor
    prompt_width: int
    log_probs: Tensor | None = None

    @property
    def completions(self) -> Tensor:
        """Token ids after the prompts, [B, T]."""
        return self.sequences[:, self.prompt_width :]

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion, the end token included, [B]."""
        return self.response_mask.sum(-1)


class RolloutEngine(Protocol):
    """What the trainer and the evaluation need from a sampler."""

    def generate(self, prompts: list[list[int]], group_size: int, seed: int) -> Rollout:
        """Sample `group_size` completions per prompt, a group's rows together; a pure function of weights and seed."""
        ...

    def sync(self, model: Any) -> None:
        """Take over the trainer's weights before the next `generate`."""
        ...


@dataclass(frozen=True)
class TransformersEngine:
    """Pure sampling with transformers' `generate`, in the process and on the weights of the trainer."""

    language_model: LanguageModel
    max_new_tokens: int = 16
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse settings that `generate` cannot sample with."""
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be positive and finite, not {self.temperature}")

    def sync(self, model: Any) -> None:
        """Nothing to do: the weights are shared."""

    def generate(self, prompts: list[list[int]], group_size: int, seed: int) -> Rollout:
        """Sample as `RolloutEngine.generate` says; the global random state is left as it was."""
        lm = self.language_model
        ids, mask = left_pad(prompts, lm.pad_id, lm.device)
        devices = [lm.device] if lm.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices), _pure_sampling(lm):
            torch.manual_seed(seed)
            cache = _prompt_cache(lm.model, ids, mask, group_size)
            ids, mask = (x.repeat_interleave(group_size, dim=0) for x in (ids, mask))
            try:
                sequences = lm.model.generate(
                    ids, attention_mask=mask, past_key_values=cache, max_new_tokens=self.max_new_tokens,
                    do_sample=True, temperature=self.temperature, top_k=0, top_p=1.0,
                )  # fmt: skip
            except RuntimeError as error:
                if "probability tensor" not in str(error):  # torch.multinomial's words for NaN and infinity
                    raise
                raise InputError(
                    f"model '{lm.name}' gives probabilities that are not finite, so nothing can be sampled; resume "
                    "from an earlier checkpoint with a smaller optimizer.lr, or check the model's weights"
                ) from error
        return pack(sequences, mask, lm.eos_ids)


def _prompt_cache(model: Any, ids: Tensor, mask: Tensor, group_size: int) -> Any:
    """Keys and values of all prompt tokens but the last, which `generate` reads itself, repeated for the group."""
    if not can_share_prompts(model) or ids.shape[1] == 1:
        return None
    _, cache = read_prompts(model, ids[:, :-1], mask[:, :-1])
    cache.batch_repeat_interleave(group_size)
    return cache


def left_pad(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as one tensor [B, P] with padding on the left, and the mask of its real tokens."""
    if not prompts or not all(prompts):
        raise InputError("every rollout needs at least one prompt, and every prompt at least one token")
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    starts = torch.tensor([width - len(p) for p in prompts], device=device)
    return ids, (torch.arange(width, device=device) >= starts[:, None]).long()


def pack(sequences: Tensor, prompt_mask: Tensor, eos_ids: tuple[int, ...]) -> Rollout:
    """A `Rollout` from generated sequences [B, P + T]: everything after a row's first end token is padding."""
    width = prompt_mask.shape[1]
    ended = torch.isin(sequences[:, width:], torch.tensor(eos_ids, device=sequences.device))
    response_mask = (ended.cumsum(-1) - ended.long()) == 0  # no end token before this position
    attention_mask = torch.cat([prompt_mask, response_mask.long()], dim=1)
    return Rollout(sequences, attention_mask, response_mask, ended.any(-1), width)


def texts(language_model: LanguageModel, rollout: Rollout) -> list[str]:
    """The completions as text, without special tokens."""
    rows = zip(rollout.completions.tolist(), rollout.lengths.tolist(), strict=True)
    return [language_model.tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in rows]


@contextmanager
def _pure_sampling(language_model: LanguageModel) -> Iterator[None]:
    """Evaluation mode and a generation config without penalties or truncation, inside the block.

    `generate` fills whatever its arguments leave open from the model's own generation config. A repetition penalty in
    there would make the samples come from another distribution than the one whose log-probabilities are trained.
    """
    from transformers import GenerationConfig

    model = language_model.model
    own, training = model.generation_config, model.training
    neutral = GenerationConfig(eos_token_id=list(language_model.eos_ids), pad_token_id=language_model.pad_id)
    model.generation_config = neutral
    model.eval()
    try:
        yield
    finally:
        model.generation_config = own
        model.train(training)
