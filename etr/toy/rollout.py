"""Sampling in the toys: every run answers every prompt G times, at once, and everything a method may need is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch, CleanBatch
from etr.groups import GroupStats, group_stats, laid_out
from etr.recipe import Recipe
from etr.samplers import Sampler
from etr.toy.answers import Answers, answer, current_columns, restarted, taken_log_probs
from etr.toy.inputs import extras, supplies
from toy_envs.model import ExactModel

__all__ = ["Scorer", "Steps", "rollout", "streams", "supplies", "taken_log_probs", "uniforms"]

FURTHER = 2**31  # makes another stream of a seed; generators read the lowest 32 bits
BLOCK, LEAST = 2**18, 2**12  # numbers drawn at a time, in all and of each seed: few calls, and flat memory


@dataclass(frozen=True)
class Scorer:
    """From rewards `[R, P·G]` to advantages and group statistics."""

    recipe: Recipe

    def __call__(self, rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, GroupStats]:
        return self.recipe.advantages(rewards, group_ids), group_stats(rewards, group_ids)


class Steps(NamedTuple):
    """The two functions of a rollout that can be compiled: `answer`, and a recipe's `Scorer`."""

    answer: Callable[[ExactModel, Tensor, Tensor], Answers]
    score: Callable[[Tensor, Tensor], tuple[Tensor, GroupStats]]


def rollout(
    recipe: Recipe,
    model: ExactModel,
    logits: Tensor,
    draw: Tensor,
    more: Iterator[Tensor] | None = None,
    steps: Steps | None = None,
) -> tuple[Batch, Tensor]:
    """Sample a group for every prompt: the batch `[R, P·G, T]`, and where its tokens stand in the table `[R, P, G, T]`.

    logits: `[R, P, S, V]`; draw: uniforms `[R, P, G, T + noise]`; more: as many for every further round that a sampler
    asks for; steps: the functions to use, by default uncompiled ones.
    """
    respond, score = steps or Steps(answer, Scorer(recipe))
    with torch.no_grad():
        answers, given = respond(model, logits, draw), None
        if isinstance(recipe.objective, Sampler):
            answers, draw, given = restarted(recipe.objective, model, logits, answers, draw, more or iter(()))
        kept = torch.ones_like(answers.log_probs, dtype=torch.bool)
        if given is not None:
            kept = torch.arange(model.horizon) >= given.flatten(-2).unsqueeze(-1)
        needs = recipe.objective.needs
        ids = laid_out(model.prompts, draw.shape[-2])
        advantages, group = score(answers.rewards, ids)
        more_columns = extras(needs, model, logits, answers, ids, draw[..., model.horizon :])
        kind = CleanBatch if given is None else Batch  # where nothing is masked there is nothing to clean
        batch = kind(
            log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            response_mask=kept,
            advantages=advantages,
            group=group,
            **more_columns,
            **current_columns(needs, logits, answers.places, more_columns.get("top_tokens")),
        )
    return batch, answers.places


def streams(
    seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, copies: int = 1
) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Uniform draws `[copies · len(seeds), *shape]` for first rounds of sampling, and others for all further rounds.

    They are apart so that a sampler's runs meet the same first rounds as those of any other recipe.
    """
    first, further = (uniforms([seed ^ salt for seed in seeds], shape, dtype) for salt in (0, FURTHER))
    repeats = (copies, *(1 for _ in shape))
    if copies == 1:
        return first, further
    return (draw.repeat(repeats) for draw in first), (draw.repeat(repeats) for draw in further)


def uniforms(
    seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float64, block: int = 0
) -> Iterator[Tensor]:
    """Endless uniform draws `[len(seeds), *shape]`; each seed has its own stream, drawn `block` at a time for speed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = math.prod(shape)
    block = block or max(1, BLOCK // (len(seeds) * size), LEAST // size)
    while True:
        numbers = torch.empty(len(seeds), block, *shape, dtype=dtype)
        for own, generator in zip(numbers, generators, strict=True):
            own.uniform_(generator=generator)
        yield from numbers.unbind(1)
