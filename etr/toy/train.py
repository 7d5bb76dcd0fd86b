"""The toy trainer: the whole of RLVR in one loop, all seeds of a recipe as one batch, every metric exact.

    sample groups -> verify -> advantages -> K updates x micro-batches -> exact reward, entropy, KL

The policy is a table of logits `[seeds, prompts, states, tokens]`, one state for a bandit, one per prefix for a token
tree. A seed's run is the same whichever other seeds share its batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from etr.batch import Batch
from etr.errors import InputError
from etr.groups import group_stats
from etr.loss import check_batch
from etr.recipe import Recipe
from etr.toy.recorder import History, Recorder
from etr.update import add_gradients, split
from toy_envs.model import ExactModel

SUPPLIES = ("group", "binary_rewards", "ref_log_probs", "rollout_log_probs")
LEARNING_RATE = 0.1  # Adam on logits: about one tenth of a nat per update, so that four updates reach a region of 0.2


@dataclass(frozen=True)
class ToyConfig:
    """Settings of a toy run, shared by all recipes of a comparison."""

    # Rollout batches to train on.
    iterations: int = 100
    # Responses sampled for each prompt, G.
    group_size: int = 16
    # Independent runs; all are trained at once.
    seeds: int = 64
    # Number of the first seed.
    first_seed: int = 0
    # Iterations between measurements.
    metrics_every: int = 1

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for name, least in (("iterations", 1), ("group_size", 2), ("seeds", 1), ("metrics_every", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise InputError(f"{name} is {value}; give at least {least}, a whole number")


def train(
    recipe: Recipe, model: ExactModel, config: ToyConfig, progress: Callable[[int], None] = lambda step: None
) -> History:
    """Train `recipe` on `model` from the uniform policy with every seed at once; `progress` gets each iteration.

    Raises InputError for settings out of range, or when the objective needs an input that a toy run does not have.
    """
    config.check()
    objective = recipe.objective
    objective.require(SUPPLIES, "the toy trainer")
    shape = (config.seeds, model.prompts, model.states, model.vocab_size)
    # Double precision: where gradients cancel, single precision leaves noise that Adam would turn into whole steps.
    logits = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    rate = recipe.optimizer.lr
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE if rate is None else rate)
    state = objective.init_state((config.seeds,), logits.device)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    recorder = Recorder(recipe, model)
    parts = split(model.prompts * config.group_size, recipe.optimizer.micro_batches or 1)
    noise = uniforms(seeds, (model.prompts, config.group_size, model.horizon + 1))
    for step, draw in zip(range(1, config.iterations + 1), noise, strict=False):
        batch, index = rollout(recipe, model, logits, draw)
        check_batch(objective, batch)
        batch, state = objective.prepare(batch, state)
        denominator = objective.denominator(batch.response_mask)
        old_logits = logits.detach().clone()  # kept to measure KL(new ‖ old) after the updates
        measure = step % config.metrics_every == 0 or step == config.iterations

        def forward(rows: slice, index: Tensor = index) -> Tensor:
            return taken_log_probs(logits, index)[..., rows, :]

        for update in range(recipe.optimizer.updates):
            optimizer.zero_grad()
            last = measure and update == recipe.optimizer.updates - 1
            observe = recorder.observe if last else None
            add_gradients(objective, batch, forward, denominator, parts, observe)
            optimizer.step()
        if measure:
            recorder.measure(step, logits.detach(), old_logits, batch)  # only read
        progress(step)
    return recorder.history(logits.detach())


def rollout(recipe: Recipe, model: ExactModel, logits: Tensor, draw: Tensor) -> tuple[Batch, Tensor]:
    """Sample a group for every prompt and verify it: the batch `[R, P·G, T]`, and where its tokens stand in the table.

    draw: uniforms `[R, P, G, T + 1]`; the last one decides a reward that is not certain.
    """
    with torch.no_grad():
        sequences = model.sample(logits, draw[..., :-1])
        rewards = model.verify(sequences, draw[..., -1])
        index = model.prefix_states(sequences) * model.vocab_size + sequences
        old = taken_log_probs(logits, index)
        rewards = rewards.flatten(-2)
        group_ids = torch.arange(model.prompts).repeat_interleave(draw.shape[-2])
        uniform = torch.full_like(old, -math.log(model.vocab_size))  # the starting policy
        batch = Batch(
            log_probs=old,
            old_log_probs=old,
            response_mask=torch.ones_like(old, dtype=torch.bool),
            advantages=recipe.advantages(rewards, group_ids),
            group=group_stats(rewards, group_ids),
            ref_log_probs=uniform if "ref_log_probs" in recipe.objective.needs else None,
            rollout_log_probs=old if "rollout_log_probs" in recipe.objective.needs else None,
        )
    return batch, index


def taken_log_probs(logits: Tensor, index: Tensor) -> Tensor:
    """log π of the sampled tokens, `[R, P·G, T]`. logits: `[R, P, S, V]`; index: state·V + token, `[R, P, G, T]`."""
    table = logits.log_softmax(-1).flatten(-2)
    return table.gather(-1, index.flatten(-2)).reshape(index.shape).flatten(-3, -2)


def uniforms(seeds: Sequence[int], shape: tuple[int, ...], block: int = 32) -> Iterator[Tensor]:
    """Endless uniform draws `[len(seeds), *shape]`; each seed has its own stream, drawn `block` at a time for speed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        yield from torch.stack([torch.rand((block, *shape), generator=g, dtype=torch.float64) for g in generators], 1)
