"""Sampling in the toys: every run answers every prompt G times, at once, and everything a method may need is exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from etr import exact
from etr.batch import Batch
from etr.groups import group_stats
from etr.recipe import Recipe
from toy_envs.model import ExactModel

ALWAYS = ("group", "ref_log_probs", "rollout_log_probs", "entropy", "full_log_probs", "values")
BLOCK, LEAST = 2**18, 2**12  # numbers drawn at a time, in all and of each seed: few calls, and flat memory


class Answers(NamedTuple):
    """Sampled tokens `[R, P, G, T]`, the place of each in the table (state·V + token), their log π `[R, P·G, T]`,
    and the rewards `[R, P·G]`."""

    tokens: Tensor
    places: Tensor
    log_probs: Tensor
    rewards: Tensor


def supplies(model: ExactModel) -> list[str]:
    """The inputs that a batch from this environment can have; names of `etr.objective.NEEDS`."""
    given = {"turns": model.turns, "clusters": model.clusters, "components": model.components}
    binary = ["binary_rewards"] if model.components is None else []
    return [*ALWAYS, *binary, *(name for name, value in given.items() if value is not None)]


def answer(model: ExactModel, logits: Tensor, draw: Tensor) -> Answers:
    """Sample and verify; draw: uniforms `[R, P, G, T + noise]`, the last ones decide rewards that are not certain."""
    tokens = model.sample(logits, draw[..., : model.horizon], check=False)
    rewards = model.verify(tokens, draw[..., model.horizon :], check=False)
    index = model.prefix_states(tokens, check=False) * model.vocab_size + tokens
    return Answers(tokens, index, taken_log_probs(logits, index), rewards.flatten(-2))


def rollout(
    recipe: Recipe,
    model: ExactModel,
    logits: Tensor,
    draw: Tensor,
    answer: Callable[[ExactModel, Tensor, Tensor], Answers] = answer,
) -> tuple[Batch, Tensor]:
    """Sample a group for every prompt: the batch `[R, P·G, T]`, and where its tokens stand in the table `[R, P, G, T]`.

    logits: `[R, P, S, V]`; draw: uniforms `[R, P, G, T + noise]`; answer: `answer`, or the same compiled.
    """
    with torch.no_grad():
        answers = answer(model, logits, draw)
        needs, group_ids = recipe.objective.needs, torch.arange(model.prompts).repeat_interleave(draw.shape[-2])
        batch = Batch(
            log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            response_mask=torch.ones_like(answers.log_probs, dtype=torch.bool),
            advantages=recipe.advantages(answers.rewards, group_ids),
            group=group_stats(answers.rewards, group_ids),
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
        "values": lambda: _state_values(logits, model, answers.places),
        "turns": lambda: torch.tensor(model.turns).expand(old.shape),
        "clusters": lambda: model.answers(answers.tokens).flatten(-2),
        "components": lambda: model.outcomes(answers.tokens, noise).flatten(-3, -2),
    }
    return {name: value() for name, value in make.items() if name in needs}


def _state_values(logits: Tensor, model: ExactModel, index: Tensor) -> Tensor:
    """A perfect critic: V(s) of the sampling policy in each state on the way, `[R, P·G, T]`."""
    values = (exact.action_values(logits, model) * logits.double().softmax(-1)).sum(-1)
    states = index // model.vocab_size
    return values.gather(-1, states.flatten(-2)).reshape(states.shape).flatten(-3, -2).to(logits.dtype)


def current_columns(needs: frozenset[str], logits: Tensor, index: Tensor) -> dict[str, Any]:
    """What else of the current policy an objective needs at the sampled states: its whole distribution, its entropy."""
    if not needs & {"entropy", "full_log_probs"}:
        return {}
    states = (index // logits.shape[-1]).flatten(-2).unsqueeze(-1)
    rows = exact.log_softmax(logits).gather(-2, states.expand(*states.shape[:-1], logits.shape[-1]))
    full = rows.reshape(*index.shape, -1).flatten(-4, -3)
    columns = {"full_log_probs": full, "entropy": -(full.exp() * full).sum(-1)}
    return {name: value for name, value in columns.items() if name in needs}


def taken_log_probs(logits: Tensor, index: Tensor) -> Tensor:
    """log π of the sampled tokens, `[R, P·G, T]`. logits: `[R, P, S, V]`; index: state·V + token, `[R, P, G, T]`."""
    table = exact.log_softmax(logits).flatten(-2)
    return table.gather(-1, index.flatten(-2)).reshape(index.shape).flatten(-3, -2)


def uniforms(
    seeds: Sequence[int], shape: tuple[int, ...], dtype: torch.dtype = torch.float64, block: int = 0
) -> Iterator[Tensor]:
    """Endless uniform draws `[len(seeds), *shape]`; each seed has its own stream, drawn `block` at a time for speed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = math.prod(shape)
    block = block or max(1, BLOCK // (len(seeds) * size), LEAST // size)
    while True:
        yield from torch.stack([torch.rand((block, *shape), generator=g, dtype=dtype) for g in generators], 1)
