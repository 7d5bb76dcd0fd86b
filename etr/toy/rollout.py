"""Sampling in the toys: every run answers every prompt G times, at once, and everything a method may need is exact."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch, CleanBatch
from etr.groups import GroupStats, group_stats, laid_out
from etr.objective import Objective, State
from etr.recipe import Recipe
from etr.samplers import Sampler, Tempered
from etr.toy.answers import Answers, answer, current_columns, taken_log_probs
from etr.toy.inputs import extras, supplies
from etr.toy.restarts import Drawn, policies, restarted
from toy_envs.model import ExactModel

__all__ = ["Scorer", "Steps", "rollout", "streams", "supplies", "taken_log_probs", "uniforms"]

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
    state: State | None = None,
) -> tuple[Batch, Tensor]:
    """Sample a group for every prompt: the batch `[R, P·G, T]`, and where its tokens stand in the table `[R, P, G, T]`.

    logits: `[R, P, S, V]`; draw: uniforms `[R, P, G, T + noise]`; more: as many for every further round that a sampler
    asks for, None for no further rounds; steps: the functions to use, by default uncompiled ones; state: the
    objective's, by default its first.
    """
    respond, score = steps or Steps(answer, Scorer(recipe))
    with torch.no_grad():
        drawn = _drawn(recipe.objective, model, logits, draw, more, respond, state)
        answers, kept = drawn.answers, torch.ones_like(drawn.sampled, dtype=torch.bool)
        if drawn.masked is not None:
            kept = torch.arange(model.horizon) >= drawn.masked.flatten(-2).unsqueeze(-1)
        needs = recipe.objective.needs
        ids = laid_out(model.prompts, draw.shape[-2])
        advantages, group = score(answers.rewards, ids)
        more_columns = extras(needs, model, logits, answers, ids, drawn.draw[..., model.horizon :], drawn.sampled)
        kind = CleanBatch if drawn.masked is None else Batch  # where nothing is masked there is nothing to clean
        batch = kind(
            log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            response_mask=kept,
            advantages=advantages,
            group=group,
            weights=_weights(recipe, drawn, kept),
            columns={} if drawn.given is None else {"given": drawn.given.flatten(-2)},
            **more_columns,
            **current_columns(needs, logits, answers.places, more_columns.get("top_tokens")),
        )
    return batch, answers.places


def _drawn(
    objective: Objective,
    model: ExactModel,
    logits: Tensor,
    draw: Tensor,
    more: Iterator[Tensor] | None,
    respond: Callable[[ExactModel, Tensor, Tensor], Answers],
    state: State | None,
) -> Drawn:
    """The answers, and who made them: the policy alone, or with the objective's say."""
    state = objective.init_state(logits.shape[:1], logits.device) if state is None else state
    both = policies(objective, model, logits, state)
    answers = respond(model, both.sampling, draw)
    drawn = Drawn(answers, draw, answers.log_probs)
    if both.sampling is not logits:
        drawn = drawn._replace(answers=answers._replace(log_probs=taken_log_probs(logits, answers.places)))
    if isinstance(objective, Sampler) and more is not None:
        drawn = restarted(objective, model, both, drawn, more, state)
    return drawn


def _weights(recipe: Recipe, drawn: Drawn, kept: Tensor) -> Tensor | None:
    """The recipe's correction, where another policy sampled than the one that is trained."""
    if not isinstance(recipe.objective, Tempered):
        return None
    return recipe.correction.weights(drawn.answers.log_probs, drawn.sampled, kept)


def streams(
    seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype, copies: int = 1
) -> tuple[Iterator[Tensor], Iterator[Iterator[Tensor]]]:
    """Uniform draws `[copies · len(seeds), *shape]` for the first round of each step; and for each step, others for all
    its further rounds.

    They are apart so that a sampler's runs meet the same first rounds as those of any other recipe. Further rounds
    begin anew at each step: how many a step takes depends on all runs of the batch, and must change no run's next step.
    """

    def repeated(draws: Iterator[Tensor]) -> Iterator[Tensor]:
        return draws if copies == 1 else (draw.repeat(copies, *(1 for _ in shape)) for draw in draws)

    further = (repeated(uniforms([_mixed(seed, step) for seed in seeds], shape, dtype, 1)) for step in count())
    return repeated(uniforms(seeds, shape, dtype)), further


def _mixed(seed: int, step: int) -> int:
    """A seed of its own for each step; generators read the lowest 32 bits."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=4).digest(), "big")


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
