"""The toy trainer: the whole of RLVR in one loop, all seeds of a recipe as one batch, every metric exact.

    sample groups -> verify -> advantages -> K updates x micro-batches -> exact reward, entropy, KL

A seed's run is the same whichever other seeds share its batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from etr.batch import Batch
from etr.errors import InputError
from etr.loss import check_batch, policy_loss
from etr.recipe import Recipe
from etr.recording import Recording
from etr.toy.answers import answer
from etr.toy.compiled import compiled
from etr.toy.config import ToyConfig
from etr.toy.policies import make_policy
from etr.toy.record import KeepingScorer, RecordingUpdater
from etr.toy.recorder import History, Recorder
from etr.toy.rollout import Scorer, Steps, rollout, streams, supplies
from etr.toy.update import Learner, Updater, new_learner
from etr.update import check_parts, split
from toy_envs.model import ExactModel

__all__ = ["History", "ToyConfig", "train"]
Update = Callable[[Learner, Batch, Tensor, Tensor], Learner]


def train(
    recipe: Recipe,
    model: ExactModel,
    config: ToyConfig,
    progress: Callable[[int], None] = lambda step: None,
    copies: int = 1,
    recording: Recording | None = None,
) -> History:
    """Train `recipe` on `model` from the uniform policy with every seed at once; `progress` gets each iteration.

    copies: runs for each seed, one after the other in the run dimension; for a recipe that has several settings
    (`etr.toy.stack`), whose runs then meet the same random numbers; recording: sees the updates of a single,
    uncompiled run until it has what it needs.
    Raises InputError for settings out of range, when the objective needs an input that this environment does not have,
    or for a recording of several runs.
    """
    config.check()
    objective = recipe.objective
    objective.require(supplies(model), "the toy trainer in this environment")
    rows, logits = make_policy(config.policy, model)
    parts = split(model.prompts * config.group_size, recipe.optimizer.micro_batches or 1)
    check_parts(objective, parts, config.group_size)
    updater = Updater(recipe, logits, parts, objective.needs)
    update, steps = functions(updater, config, copies, recording)
    dtype = getattr(torch, config.dtype)
    learner = new_learner(torch.zeros(copies * config.seeds, rows, model.vocab_size, dtype=dtype))
    state = objective.init_state((copies * config.seeds,), learner.parameters.device)
    recorder = Recorder(recipe, model, config.observe)
    shape = (model.prompts, config.group_size, model.horizon + model.noise_size)
    numbers, more = streams(range(config.first_seed, config.first_seed + config.seeds), shape, dtype, copies)
    for step, draw in zip(range(1, config.iterations + 1), numbers, strict=False):
        old_logits = logits(learner.parameters)
        batch, index = rollout(recipe, model, old_logits, draw, next(more), steps, state)
        if step == 1 or config.measured(step):  # looking at every value costs more than an update
            check_batch(objective, batch)
        batch, state = objective.prepare(batch, state)
        batch, denominator = batch.clean(), objective.denominator(batch.response_mask)
        for _ in range(recipe.optimizer.updates):
            before = learner.parameters
            learner = update(learner, batch, index, denominator)
        if config.measured(step):
            last = updater.current(before, batch, index)
            recorder.observe(last, policy_loss(objective, last, denominator, check=False))
            recorder.measure(step, logits(learner.parameters), old_logits, batch, index)
        progress(step)
    return recorder.history(logits(learner.parameters))


def functions(updater: Updater, config: ToyConfig, copies: int, recording: Recording | None) -> tuple[Update, Steps]:
    """The update and the steps of a rollout: compiled, seen by the recording, or as they are.

    Raises InputError for a recording of several runs, or of a compiled one.
    """
    if recording is not None:
        if config.compile or copies * config.seeds != 1:
            raise InputError("a recording is of one uncompiled run; give one seed, and compile=False")
        scorer = KeepingScorer(updater.recipe)
        fields = (updater.recipe, updater.logits, updater.parts, updater.needs)
        return RecordingUpdater(*fields, recording, scorer.seen), Steps(answer, scorer)
    plain = Scorer(updater.recipe)
    if config.compile:
        return compiled(updater), Steps(compiled(answer), compiled(plain))
    return updater, Steps(answer, plain)
