"""The LLM trainer: the toy trainer's loop with a language model in the place of the table.

    prompts -> G sampled completions each -> rewards -> advantages -> K updates x micro-batches -> metrics, checkpoint

What this loop does, so that a ratio means what the papers say:
1. Old log-probs are the trainer's own, computed with the same micro-batches as the update, so r = 1 at first.
2. Temperature is the same in sampling and in log-probs; nothing else bends the sampling distribution.
3. Group statistics and advantages are taken on whole groups, before any split.
4. One denominator per optimiser step for all its micro-batches.
5. Everything random is a function of (seed, step): a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import random
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from etr import diagnostics, observatory
from etr.batch import Batch, LossOutput, Mean
from etr.errors import InputError
from etr.groups import group_stats
from etr.llm.config import TrainConfig
from etr.llm.log_probs import check_log_probs, completion_log_probs
from etr.llm.models import LanguageModel
from etr.llm.rollout import Rollout, RolloutEngine, TransformersEngine, texts
from etr.llm.tasks import Task, encode
from etr.llm.toy_tasks import TOY_LLAMA
from etr.loss import check_batch
from etr.objective import State
from etr.recipe import OptimizerSettings, Recipe
from etr.update import add_gradients, split

SUPPLIES = ("group", "binary_rewards", "rollout_log_probs")  # the batch's entropy is a report: it has no gradient
LEARNING_RATES = {TOY_LLAMA: 3e-4}  # AdamW's, where the recipe names none
LEARNING_RATE = 5e-6  # the same for every other model
MICRO_BATCH_ROWS = 32  # measured on a CPU core with prompts read once per group: a third faster than 8


@dataclass
class Trainer:
    """A run in progress: everything a step needs, and what a checkpoint must keep (model, optimizer, state)."""

    recipe: Recipe
    config: TrainConfig
    language_model: LanguageModel
    task: Task
    engine: RolloutEngine
    optimizer: torch.optim.Optimizer
    state: State

    @staticmethod
    def create(recipe: Recipe, config: TrainConfig, language_model: LanguageModel, task: Task) -> Trainer:
        """Raises InputError when the objective needs what this trainer has not, or the model's head is unusual."""
        recipe.objective.require(SUPPLIES, "the LLM trainer")
        model = language_model.model
        check_log_probs(model)
        optimizer = make_optimizer(recipe.optimizer, language_model)
        engine = TransformersEngine(language_model, config.max_new_tokens, config.temperature)
        state = recipe.objective.init_state((), language_model.device)
        return Trainer(recipe, config, language_model, task, engine, optimizer, state)

    def step(self, step: int) -> dict[str, float]:
        """One rollout batch and its K updates; returns the metrics of `report`."""
        start = time.perf_counter()
        rollout, rewards, group_ids = self.collect(step)
        batch = self.to_batch(rollout, rewards, group_ids)
        batch, self.state = self.recipe.objective.prepare(batch, self.state)
        sums, norm = self.update(rollout, batch, step)
        self.engine.sync(self.language_model.model)
        moved = self.observe(rollout, batch)
        seconds = time.perf_counter() - start
        return {
            **report(rollout, rewards, batch, sums),
            **moved,
            "grad_norm": norm,
            "tokens_per_s": float(rollout.lengths.sum()) / seconds,
            "seconds": seconds,
        }

    def collect(self, step: int) -> tuple[Rollout, Tensor, Tensor]:
        """Sample a group for each prompt of this step and grade it: rollout, rewards `[B]`, group ids `[B]`."""
        config, lm = self.config, self.language_model
        items = self.task.sample(step - 1, config.prompts, config.seed)
        prompts = [encode(lm.tokenizer, item) for item in items]
        rollout = self.engine.generate(prompts, config.group_size, stream(config.seed, step))
        group_ids = torch.arange(len(items)).repeat_interleave(config.group_size)
        graded = zip(group_ids.tolist(), texts(lm, rollout), strict=True)
        rewards = [self.task.reward(items[prompt], text) for prompt, text in graded]
        return rollout, torch.tensor(rewards, device=lm.device), group_ids.to(lm.device)

    def to_batch(self, rollout: Rollout, rewards: Tensor, group_ids: Tensor) -> Batch:
        """The rollout batch `[B, T]` with the trainer's own old log-probs, advantages and group statistics."""
        with torch.no_grad():
            parts = [self.log_probs(rollout, rows) for rows in self.micro_batches(len(rewards))]
            old, entropy = (torch.cat(values) for values in zip(*parts, strict=True))
            batch = Batch(
                log_probs=old,
                old_log_probs=old,
                response_mask=rollout.response_mask,
                advantages=self.recipe.advantages(rewards, group_ids),
                group=group_stats(rewards, group_ids),
                rollout_log_probs=old if rollout.log_probs is None else rollout.log_probs,
                entropy=entropy,
            )
            check_batch(self.recipe.objective, batch)
        return batch

    def update(self, rollout: Rollout, batch: Batch, step: int) -> tuple[dict[str, Mean], float]:
        """K optimiser steps on the batch; metric sums of the last one, and its gradient norm before clipping.

        Signal and noise are those of the first one: later gradients follow a policy that this batch has moved.
        """
        objective, settings = self.recipe.objective, self.recipe.optimizer
        parameters = list(self.language_model.model.parameters())
        denominator = objective.denominator(batch.response_mask)
        limit = float("inf") if settings.max_grad_norm is None else settings.max_grad_norm
        sums: dict[str, Mean] = {}
        norm = whole = torch.zeros(())  # of the last gradient and of the first
        first: list[Tensor] = []  # norm of the gradient of the first micro-batch alone

        def observe(part: Batch, out: LossOutput) -> None:
            if not first:
                first.append(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
            if last:
                for name, mean in {**out.metrics, **diagnostics.clipped(objective, part)}.items():
                    sums[name] = sums[name] + mean if name in sums else mean

        for update in range(settings.updates):
            self.optimizer.zero_grad()
            last = update == settings.updates - 1
            add_gradients(
                objective,
                batch,
                lambda rows: {"log_probs": self.log_probs(rollout, rows)[0]},
                denominator,
                self.micro_batches(len(batch.log_probs)),
                observe if last or not first else None,
            )
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            whole = norm if update == 0 else whole
            if not bool(torch.isfinite(norm)):
                raise InputError(
                    f"the gradient is {float(norm)} at step {step}, and the weights are as after step {step - 1} or "
                    "part of this step; resume from the last checkpoint with a smaller optimizer.lr"
                )
            self.optimizer.step()
        return sums | self.signal(first[0], whole, len(batch.log_probs)), float(norm)

    def signal(self, first: Tensor, whole: Tensor, size: int) -> dict[str, Mean]:
        """Signal and noise of a gradient from its norm and that of its first micro-batch; NaN without equal pieces.

        Pieces are independent only if each holds whole groups, and comparable only if equally many.
        """
        parts = self.micro_batches(size)
        rows = {part.stop - part.start for part in parts}
        n = len(parts) if len(rows) == 1 and rows.pop() % self.config.group_size == 0 else 1
        piece, square = (n * first).double().square(), whole.double().square()
        nothing = torch.full_like(piece, torch.nan)
        found = observatory.signal_from_norms(piece, square, n) if n > 1 else (nothing, nothing)
        names = ("gradient/signal", "gradient/noise")
        return {name: Mean(value, torch.ones_like(value)) for name, value in zip(names, found, strict=True)}

    def observe(self, rollout: Rollout, batch: Batch) -> dict[str, float]:
        """What the whole update did to entropy and regions (`etr.observatory`): one pass more, after the last step."""
        with torch.no_grad():
            parts = [self.log_probs(rollout, rows)[0] for rows in self.micro_batches(len(batch.log_probs))]
        after = dataclasses.replace(batch, log_probs=torch.cat(parts))
        sums = observatory.observe(self.recipe.objective, after, batch.entropy)
        return {name: float(value) for name, value in observatory.read(sums).items()}

    def log_probs(self, rollout: Rollout, rows: slice) -> tuple[Tensor, Tensor]:
        """log π and entropy of the completion tokens of some rows, `[b, T]`, at the sampling temperature."""
        return completion_log_probs(
            self.language_model.model,
            rollout.sequences[rows],
            rollout.attention_mask[rows],
            rollout.prompt_width,
            self.config.temperature,
        )

    def micro_batches(self, size: int) -> list[slice]:
        """The rows of each micro-batch; old log-probs and updates share them, so that both see the same arithmetic."""
        parts = self.recipe.optimizer.micro_batches or -(-size // MICRO_BATCH_ROWS)
        return split(size, parts)


def make_optimizer(settings: OptimizerSettings, language_model: LanguageModel) -> torch.optim.Optimizer:
    """AdamW, or SGD without momentum. Raises InputError for SGD without a learning rate: there is no good default."""
    parameters, decay = language_model.model.parameters(), settings.weight_decay
    if settings.method == "sgd":
        if settings.lr is None:
            raise InputError("optimizer.method sgd has no learning rate here; set optimizer.lr, for example to 0.1")
        return torch.optim.SGD(parameters, lr=settings.lr, weight_decay=decay)
    rate = LEARNING_RATES.get(language_model.name, LEARNING_RATE) if settings.lr is None else settings.lr
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def report(rollout: Rollout, rewards: Tensor, batch: Batch, sums: dict[str, Mean]) -> dict[str, float]:
    """The metrics of a step, as numbers; entropy and reward are those of the policy that sampled the batch."""
    assert batch.entropy is not None  # set by `to_batch`
    sums = {**sums, **diagnostics.homogeneous(batch), "entropy": Mean.of(batch.entropy, batch.response_mask)}
    values = {name: float(mean.value) for name, mean in sums.items()}
    return {
        "reward": float(rewards.mean()),
        "entropy": values.pop("entropy"),
        "kl": values.pop("policy/kl_old_to_new_k3"),
        "zero_grad_frac": values.pop("region/zero_grad_frac"),
        "length": float(rollout.lengths.float().mean()),
        "truncated": float((~rollout.finished).float().mean()),
        **values,
    }


def stream(seed: int, step: int) -> int:
    """A seed for everything random in one step: a pure function, so nothing need be saved to resume."""
    return random.Random(f"etr/{seed}/{step}").getrandbits(63)


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is a GPU where there is one. Raises InputError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{name}' is not available here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    return torch.device(name)
