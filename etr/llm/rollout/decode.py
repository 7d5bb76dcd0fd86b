"""Sampling with a transformers model: a short loop over its key-value cache, one uniform number per row and token.

A token is drawn by inverting the distribution function, x = min{i : Σ_{j≤i} p_j > u}, so a completion is a function of
its own numbers u and of nothing else in the batch, and its log-prob is at hand. The sum runs in float64: over 150,000
ids, float32 would lose the rare ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.models import LanguageModel
from etr.llm.prompts import position_ids

BLOCK = 256  # ids summed at once: only the block that holds the token is searched id by id


@dataclass(frozen=True)
class Sampler:
    """softmax(logits / temperature) over the first `vocabulary` ids, by inverting its distribution function."""

    language_model: LanguageModel
    temperature: float
    vocabulary: int

    def __call__(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probs [B] from logits [B, V] and uniform numbers [B]; NaN logits are refused."""
        logits = logits[:, : self.vocabulary]
        logits = logits if self.temperature == 1.0 else logits.to(wide(logits)) / self.temperature
        probabilities = torch.softmax(logits, dim=-1, dtype=wide(logits))
        tokens = invert(probabilities, uniform)
        log_probs = probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()
        if not bool(torch.isfinite(log_probs).all()):
            raise InputError(
                f"model '{self.language_model.name}' gives probabilities that are not finite, so nothing can be "
                "sampled; resume from an earlier checkpoint with a smaller optimizer.lr, or check the model's weights"
            )
        return tokens, log_probs


def wide(logits: Tensor) -> torch.dtype:
    """At least single precision."""
    return torch.promote_types(logits.dtype, torch.float32)


def invert(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The smallest i with Σ_{j≤i} p_j > u·Σp for each row: p [B, V], u [B] in [0, 1) -> [B].

    NaN gives any index, so the caller looks at the log-probs.
    """
    rows, size = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (0, -size % BLOCK)).view(rows, -1, BLOCK)
    upto = padded.sum(-1, dtype=torch.float64).cumsum(-1)  # [B, blocks]
    target = (uniform.to(upto) * upto[:, -1])[:, None]
    target = torch.minimum(target, below(upto[:, -1:]))
    block = torch.searchsorted(upto, target, right=True).clamp_max(upto.shape[1] - 1)  # NaN has no place
    before = torch.where(block > 0, upto.gather(1, (block - 1).clamp_min(0)), 0.0)
    inside = padded.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1).double().cumsum(-1)
    # The two sums round differently at the end of a block: then its last id that can be sampled is meant.
    target = torch.minimum(target - before, below(inside[:, -1:]))
    found = block * BLOCK + torch.searchsorted(inside, target, right=True)
    return found.squeeze(1).clamp_max(size - 1)


def below(x: Tensor) -> Tensor:
    """The next smaller number than each positive one."""
    return torch.nextafter(x, torch.zeros_like(x))


def decode(
    sampler: Sampler, ids: Tensor, mask: Tensor, group_size: int, uniforms: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """Sample rows [B, T] of tokens and log-probs, padded with an end token; prompts ids, mask [U, P] are read once.

    B = U · group_size; uniforms [B, T]; end: the ids that end a row. Rows that have ended are dropped from the batch.
    """
    from transformers import DynamicCache

    model = sampler.language_model.model
    rows, most = uniforms.shape
    tokens = end[:1].expand(rows, most).clone()
    log_probs = torch.zeros(rows, most, device=ids.device)
    cache = DynamicCache(config=model.config)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=position_ids(mask), past_key_values=cache, logits_to_keep=1
    ).logits
    logits = logits[:, -1].repeat_interleave(group_size, dim=0)
    cache.batch_repeat_interleave(group_size)
    mask = mask.repeat_interleave(group_size, dim=0)
    alive = torch.arange(rows, device=ids.device)
    for t in range(most):
        drawn, values = sampler(logits, uniforms[alive.cpu(), t])
        tokens[alive, t], log_probs[alive, t] = drawn, values.to(log_probs.dtype)
        going = (~torch.isin(drawn, end)).nonzero().squeeze(1)
        if len(going) == 0 or t == most - 1:
            return tokens[:, : t + 1], log_probs[:, : t + 1]
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, mask, drawn = alive[going], mask[going], drawn[going]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        logits = model(
            input_ids=drawn[:, None], attention_mask=mask, position_ids=position_ids(mask)[:, -1:],
            past_key_values=cache, logits_to_keep=1,
        ).logits[:, -1]  # fmt: skip
    raise AssertionError("uniforms hold no column")  # EngineSettings asks for at least one token


@dataclass
class Chosen:
    """A logits processor that samples by itself and leaves `generate` no choice; keeps the log-probs it drew."""

    sampler: Sampler
    uniforms: Tensor
    log_probs: list[Tensor] = field(default_factory=list)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] that are −∞ but for one token a row."""
        tokens, log_probs = self.sampler(scores, self.uniforms[:, len(self.log_probs)])
        self.log_probs.append(log_probs.float())
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def generate(
    sampler: Sampler, ids: Tensor, mask: Tensor, group_size: int, uniforms: Tensor, end: Tensor
) -> tuple[Tensor, Tensor]:
    """`decode` by transformers' own `generate`, for models with sliding windows or states in the place of a cache."""
    from transformers import LogitsProcessorList

    ids, mask = (x.repeat_interleave(group_size, dim=0) for x in (ids, mask))
    chosen = Chosen(sampler, uniforms)
    sequences = sampler.language_model.model.generate(
        ids, attention_mask=mask, max_new_tokens=uniforms.shape[1], do_sample=False,
        logits_processor=LogitsProcessorList([chosen]),
    )  # fmt: skip
    return sequences[:, ids.shape[1] :], torch.stack(chosen.log_probs, dim=1)


@contextmanager
def gathered(model: Any) -> Iterator[None]:
    """Holds the whole weights of a model that FSDP2 shards, inside the block; does nothing to any other.

    Otherwise every forward pass is a collective, and ranks whose answers differ in length would wait for ever.
    """
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not parts[0], recurse=False)  # all but the root, as `shard` set it
            part.reshard()


@contextmanager
def pure_sampling(language_model: LanguageModel) -> Iterator[None]:
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
        # Compiled layers would be compiled anew for the growing shapes of sampling.
        with gathered(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        model.generation_config = own
        model.train(training)
