"""Sampling in the toys: every run answers every prompt G times, at once, and everything a method may need is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr.batch import Batch, CleanBatch
from etr.groups import GroupStats, group_stats, laid_out
from etr.oracles.critic import state_values
from etr.recipe import Recipe
from etr.samplers import Sampler
from etr.toy.answers import Answers, answer, current_columns, restarted, taken_log_probs
from toy_envs.model import ExactModel

__all__ = ["Scorer", "Steps", "rollout", "streams", "supplies", "taken_log_probs", "uniforms"]

ALWAYS = ("group", "ref_log_probs", "rollout_log_probs", "entropy", "full_log_probs", "values")
FURTHER = 2**31  # makes another stream of a seed; generators read the lowest 32 bits
BLOCK, LEAST = 2**18, 2**12  # numbers drawn at a time, in all and of each seed: few calls, and flat memory


def supplies(model: ExactModel) -> list[str]:
    """The inputs that a batch from this environment can have; names of `etr.objective.NEEDS`."""
    given = {"turns": model.turns, "clusters": model.clusters, "components": model.components}
    binary = ["binary_rewards"] if model.components is None else []
    sampling = ["hints", "resets"] if model.horizon > 1 else []  # behind a single token there is nothing to complete
    return [*ALWAYS, *binary, *sampling, *(name for name, value in given.items() if value is not None)]


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
        advantages, group = score(answers.rewards, laid_out(model.prompts, draw.shape[-2]))
        kind = CleanBatch if given is None else Batch  # where nothing is masked there is nothing to clean
        batch = kind(
            log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            response_mask=kept,
            advantages=advantages,
            group=group,
            **_extras(needs, model, logits, answers, draw[..., model.horizon :]),
            **current_columns(needs, logits, answers.places),
        )
    return batch, answers.places


def _extras(
    needs: frozenset[str], model: ExactModel, logits: Tensor, answers: Answers, noise: Tensor
) -> dict[str, Any]:
    """The inputs that stay the same during the updates on a batch, those in `needs` only."""
    old = answers.log_probs
    make: dict[str, Callable[[], Tensor]] = {
        "ref_log_probs": lambda: torch.full_like(old, -math.log(model.vocab_size)),  # the starting policy
        "rollout_log_probs": lambda: old,
        "values": lambda: _values(logits, model, answers.places),
        "turns": lambda: torch.tensor(model.turns).expand(old.shape),
        "clusters": lambda: model.answers(answers.tokens).flatten(-2),
        "components": lambda: model.outcomes(answers.tokens, noise).flatten(-3, -2),
    }
    return {name: value() for name, value in make.items() if name in needs}


def _values(logits: Tensor, model: ExactModel, index: Tensor) -> Tensor:
    """V(s) of the sampling policy in each state on the way, `[R, P·G, T]`."""
    states = index // model.vocab_size
    values = state_values(logits, model).gather(-1, states.flatten(-2))
    return values.reshape(states.shape).flatten(-3, -2).to(logits.dtype)


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
