"""What every rollout engine takes and gives: prompts and seeds in, tokens with their log-probs out, weights by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.models import LanguageModel


class EngineError(InputError):
    """A rollout engine failed or died; the message says which one, at which version of the weights, and what to do."""


@dataclass(frozen=True)
class Rollout:
    """B completions of at most T tokens after left-padded prompts of width P.

    sequences and attention_mask are [B, P + T]; response_mask [B, T] is True up to and including the first end token,
    by position, since padding may share its id; finished [B] is False where the length limit cut a completion off.
    log_probs [B, T] are the engine's own log-probs of its tokens at the sampling temperature, float32, 0 on padding;
    None only where no engine sampled the tokens.
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

    def rows(self, index: slice | Tensor) -> Rollout:
        """Some of the completions, with all their columns."""
        log_probs = None if self.log_probs is None else self.log_probs[index]
        ids, mask, kept, finished = self.sequences, self.attention_mask, self.response_mask, self.finished
        return Rollout(ids[index], mask[index], kept[index], finished[index], self.prompt_width, log_probs)


class RolloutEngine(Protocol):
    """What the trainer and the evaluation need from a sampler. `version` is that of the weights it holds."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> int: ...

    def generate(self, prompts: list[list[int]], group_size: int, seeds: Sequence[int]) -> Rollout:
        """Sample `group_size` completions per prompt, a group's rows together, each a function of its own seed."""
        ...

    def score(self, sequences: Sequence[list[int]]) -> list[Tensor]:
        """log p of the tokens 1.. of each sequence given those before, at temperature 1: float32 on the CPU."""
        ...

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over the trainer's weights, by their Hugging Face names, before the next `generate`."""
        ...

    def sleep(self) -> None:
        """Free accelerator memory until `wake`."""
        ...

    def wake(self) -> None:
        """Be ready for `sync` and `generate` again."""
        ...

    def close(self) -> None:
        """Let go of everything; the engine cannot be used again."""
        ...


TRUNCATIONS = ("top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine samples, and what it may use. Raises InputError for what nothing can be sampled or trained with.

    top_p, top_k, min_p and repetition_penalty have one allowed value, which is none of them: they sample from another
    distribution than the one whose log-probs are trained, and the ratio exp(trainer − rollout) is biased.
    """

    max_new_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    # vLLM: longest prompt and answer together; None for the model's own limit.
    max_model_len: int | None = None
    # vLLM on a CPU: gibibytes for keys and values.
    kv_cache_gib: float = 1.0
    # vLLM on a GPU: share of its memory that the engine may take while it is awake.
    gpu_memory: float = 0.45
    # vLLM server: seconds to wait for one answer.
    timeout: float = 600.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not 0 < self.temperature < float("inf"):
            raise InputError(f"temperature must be positive and finite, not {self.temperature}")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in TRUNCATIONS and value != field.default:
                raise InputError(
                    f"{field.name} = {value:g} bends the sampling distribution away from the one whose log-probs are "
                    f"trained, so the ratio would be biased; leave it at {field.default:g} and set temperature instead"
                )


def vocabulary_size(language_model: LanguageModel) -> int:
    """How many token ids can be sampled: those of the tokenizer, where the model's head has more rows (padding).

    A padded id decodes to nothing and crashes some engines as a prompt. Its probability is set to 0 in sampling, so
    the trainer must normalise over the same ids, or its ratio would be biased by the mass that sampling left out.
    """
    known: int = max(language_model.tokenizer.get_vocab().values()) + 1
    rows: int = language_model.model.config.get_text_config().vocab_size
    return min(known, rows)


def check_prompts(prompts: Sequence[list[int]]) -> None:
    """Raise `InputError` unless there is a prompt and each has a token."""
    if not prompts or not all(prompts):
        raise InputError("every rollout needs at least one prompt, and every prompt at least one token")


def left_pad(prompts: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts as one tensor [B, P] with padding on the left, and the mask of its real tokens."""
    check_prompts(prompts)
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    starts = torch.tensor([width - len(p) for p in prompts], device=device)
    return ids, (torch.arange(width, device=device) >= starts[:, None]).long()


def pack(sequences: Tensor, prompt_mask: Tensor, eos_ids: tuple[int, ...], log_probs: Tensor | None = None) -> Rollout:
    """A `Rollout` from generated sequences [B, P + T]: everything after a row's first end token is padding."""
    width = prompt_mask.shape[1]
    ended = torch.isin(sequences[:, width:], torch.tensor(eos_ids, device=sequences.device))
    response_mask = (ended.cumsum(-1) - ended.long()) == 0  # no end token before this position
    attention_mask = torch.cat([prompt_mask, response_mask.long()], dim=1)
    if log_probs is not None:
        log_probs = torch.where(response_mask, log_probs, 0.0)
    return Rollout(sequences, attention_mask, response_mask, ended.any(-1), width, log_probs)


def pack_lists(
    language_model: LanguageModel,
    prompts: list[list[int]],
    group_size: int,
    completions: Sequence[Sequence[int]],
    log_probs: Sequence[Sequence[float]],
) -> Rollout:
    """A `Rollout` from the lists that an engine outside torch returns, one completion with its log-probs a row."""
    lm, width = language_model, max(map(len, completions))
    ids, prompt_mask = left_pad(prompts, lm.pad_id, lm.device)
    ids, prompt_mask = (x.repeat_interleave(group_size, dim=0) for x in (ids, prompt_mask))
    tokens = torch.tensor([[*row, *[lm.pad_id] * (width - len(row))] for row in completions], device=lm.device)
    values = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in log_probs], device=lm.device)
    lengths = torch.tensor([len(row) for row in completions], device=lm.device)
    finished = torch.tensor([row[-1] in lm.eos_ids for row in completions], device=lm.device)
    # By length and not by end token: an engine also cuts a row off at the longest sequence it can hold.
    response_mask = torch.arange(width, device=lm.device) < lengths[:, None]
    attention_mask = torch.cat([prompt_mask, response_mask.long()], dim=1)
    return Rollout(torch.cat([ids, tokens], 1), attention_mask, response_mask, finished, ids.shape[1], values)


def texts(language_model: LanguageModel, rollout: Rollout) -> list[str]:
    """The completions as text, without special tokens."""
    rows = zip(rollout.completions.tolist(), rollout.lengths.tolist(), strict=True)
    return [language_model.tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in rows]
