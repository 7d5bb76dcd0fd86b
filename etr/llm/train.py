"""The LLM trainer: the toy trainer's loop with a language model in the place of the table.

    prompts -> G sampled completions each -> rewards -> advantages -> K updates x micro-batches -> engine, metrics

What this loop does, so that a ratio means what the papers say:
1. Old log-probs are the trainer's own: those of the first update's forward pass, or of a pass just like it, so r = 1.
2. Temperature is the same in sampling and in log-probs; nothing else bends the sampling distribution.
3. Group statistics and advantages are taken on whole groups, over all processes, before any split.
4. One denominator per optimiser step for all its micro-batches and processes.
5. After every update the engine gets the new weights, and a canary checks that it uses them.
6. Everything random is a function of (seed, step): a resumed run continues as if it had never stopped.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from etr import diagnostics, observatory
from etr.batch import Batch, LossOutput, Mean
from etr.groups import group_stats
from etr.llm import samples
from etr.llm.canary import Canary, largest, mismatch
from etr.llm.collect import Collected, Collector
from etr.llm.config import TrainConfig
from etr.llm.distributed import ALONE, World
from etr.llm.export import exported_weights
from etr.llm.faults import require_finite
from etr.llm.models import LanguageModel
from etr.llm.optimizers import Optimizer
from etr.llm.peak import resident
from etr.llm.policy import TOP, Policy
from etr.llm.rewards.clusters import clusters
from etr.llm.rollout import EngineError, Rollout, texts
from etr.loss import check_batch
from etr.objective import State
from etr.recipe import Recipe
from etr.recording import Recording
from etr.update import Forward, Observe, add_gradients, check_parts, split

SUPPLIES = (
    *("group", "rewards", "group_ids", "binary_rewards", "components", "tokens", "clusters", "turns"),
    *("rollout_log_probs", "ref_log_probs", "entropy", "top_log_probs"),
)


@dataclass
class Trainer:
    """A run in progress: everything a step needs. `etr.llm.setup.build` puts one together.

    policy: the trained weights; reference: those that it may not leave (`ref_log_probs`), if the recipe asks;
    state: of the objective; recording: sees the first updates, for the replay proof; samples: lines of samples.jsonl
    from the last step that shows any; failure: what killed the engine after the last update, if anything did. A
    checkpoint keeps the weights, the optimizer and the state.
    """

    recipe: Recipe
    config: TrainConfig
    language_model: LanguageModel
    policy: Policy
    optimizer: Optimizer
    collector: Collector
    canary: Canary
    state: State
    reference: Policy | None = None
    world: World = ALONE
    recording: Recording | None = None
    samples: list[dict[str, Any]] = field(default_factory=list)
    failure: EngineError | None = None

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        self.collector.close()

    def begin(self, step: int) -> None:
        """Give the engine the weights as they are after `step`, and let the canary see them for the first time.

        Raises InputError when the engine does not sample with them: a server, for one, may still hold another run's.
        """
        self.sync(step)
        if self.failure is not None:
            raise self.failure

    def step(self, step: int) -> dict[str, float]:
        """One rollout batch and its K updates; returns the metrics of `report`. Raises InputError as its parts do."""
        start = time.perf_counter()
        collected = self.collector.collect(step)
        sampled = time.perf_counter()
        batch = self.to_batch(collected)
        batch, self.state = self.recipe.objective.prepare(batch, self.state)
        batch, sums, norm = self.update(collected.rollout, batch, step)
        updated = time.perf_counter()
        canary = self.sync(step)
        moved = self.observe(collected, batch, step)
        done = time.perf_counter()
        return {
            **report(collected, batch, sums),
            **{name: float(mean.value) for name, mean in mismatch(self.recipe.objective, batch).items()},
            "mismatch/max": float(largest(batch)),
            **moved,
            **canary,
            "grad_norm": norm,
            "tokens_per_s": float(collected.rollout.lengths.sum()) / (done - start),
            "seconds": done - start,
            "seconds/rollout": sampled - start,
            "seconds/update": updated - sampled,
            "seconds/sync": done - updated,
            "memory": resident("VmRSS") / 2**30,
        }

    def to_batch(self, collected: Collected) -> Batch:
        """The whole rollout batch `[B, T]`: the old policy's columns (`old_columns`), advantages, group statistics."""
        rollout, group_ids = collected.rollout, collected.group_ids
        needs = self.recipe.objective.needs
        mask = rollout.response_mask & collected.keep[:, None]
        batch = Batch(
            **self.old_columns(rollout),
            response_mask=mask,
            advantages=self.recipe.advantages(collected.shaped, group_ids),
            group=group_stats(collected.rewards, group_ids, self.collector.grader.bounds),
            rewards=collected.shaped,
            group_ids=group_ids,
            tokens=rollout.completions,
            turns=torch.zeros_like(rollout.completions),  # an answer is one turn
            clusters=clusters(texts(self.language_model, rollout)).to(mask.device) if "clusters" in needs else None,
            ref_log_probs=None if self.reference is None else self.pass_over(self.reference, rollout)["log_probs"],
            components=torch.stack(list(collected.components.values()) or [collected.rewards], -1),
        )
        batch = self.recipe.correction.apply(batch)
        check_batch(self.recipe.objective, batch)
        return batch

    def one_pass(self, rollout: Rollout) -> bool:
        """Can the first update's forward pass give the old policy's columns? Not if anything reads them before."""
        objective = self.recipe.objective
        early = objective.reads_policy or "top_log_probs" in objective.needs or self.recipe.correction.active
        return not early and rollout.log_probs is not None

    def old_columns(self, rollout: Rollout) -> dict[str, Any]:
        """The policy at the start of the update; where the first update is to supply it, the engine's log-probs."""
        if self.one_pass(rollout) and rollout.log_probs is not None:
            own = {"log_probs": rollout.log_probs, "entropy": torch.zeros_like(rollout.log_probs)}
        else:
            own = self.pass_over(self.policy, rollout, self.recipe.objective.needs | {"entropy"})
        old = own["log_probs"]
        sampled_by = old if rollout.log_probs is None else rollout.log_probs
        return {**own, "old_log_probs": old, "rollout_log_probs": sampled_by}

    def pass_over(self, policy: Policy, rollout: Rollout, needs: Collection[str] = ()) -> dict[str, Any]:
        """The columns of `policy` (`Policy.columns`) for all processes' completions, without gradient."""
        own = self.own_parts(rollout)
        with torch.no_grad():
            found = [policy.columns(rollout, rows, needs) for rows in (*own, *own[:1] * self.world.idle(own))]
        return self.gathered(found[: len(own)])

    def gathered(self, found: list[dict[str, Tensor]]) -> dict[str, Any]:
        """The columns of all rows, from those of the micro-batches of this process."""
        return {name: self.world.gather_rows(torch.cat([part[name] for part in found])) for name in found[0]}

    def update(self, rollout: Rollout, batch: Batch, step: int) -> tuple[Batch, dict[str, Mean], float]:
        """K optimiser steps; the batch with its old log-probs, metric sums of the last step, its norm before clipping.

        Signal and noise are those of the first one: later gradients follow a policy that this batch has moved.
        """
        objective, settings = self.recipe.objective, self.recipe.optimizer
        parts = self.own_parts(rollout)
        missing, seen = self.one_pass(rollout), list[dict[str, Tensor]]()
        sums: dict[str, Mean] = {}
        norm = whole = torch.zeros(())  # of the last gradient and of the first
        first: list[Tensor] = []  # norm of the gradient of the first micro-batch alone

        def observe(part: Batch, out: LossOutput) -> None:
            if not first:
                first.append(self.optimizer.norm())
            if last:
                for name, mean in {**out.metrics, **diagnostics.clipped(objective, part)}.items():
                    sums[name] = sums[name] + mean if name in sums else mean

        def forward(rows: slice) -> dict[str, Tensor]:
            if not missing:
                return self.current(rollout, rows, batch.top_tokens)
            found = self.policy.columns(rollout, rows, objective.needs | {"entropy"})
            seen.append({name: x.detach() for name, x in found.items()})  # constants: the old policy does not move
            return {**found, "old_log_probs": seen[-1]["log_probs"]}

        for update in range(settings.updates):
            last = update == settings.updates - 1
            loss = self.add_gradients(rollout, batch, forward, parts, observe if last or not first else None)
            norm = self.optimizer.clip(settings.max_grad_norm)
            whole = norm if update == 0 else whole
            require_finite(step, float(loss), float(norm))
            self.optimizer.step()
            if missing:
                own, missing = self.gathered(seen), False
                batch = dataclasses.replace(batch, **own, old_log_probs=own["log_probs"])
        self.optimizer.zero_grad()  # gradients are the largest thing that the next rollout would share its memory with
        return batch, self.world.total(sums) | self.signal(first[0], whole, parts), float(norm)

    def add_gradients(
        self, rollout: Rollout, batch: Batch, forward: Forward, parts: list[slice], observe: Observe | None
    ) -> Tensor:
        """The gradient of one update in the parameters, over the micro-batches of all processes; returns its loss."""
        objective, recording, scale = self.recipe.objective, self.recording, float(self.world.size)
        denominator = objective.denominator(batch.response_mask)
        passes, watch = (forward, observe) if recording is None else recording.around(forward, observe, scale)
        self.optimizer.zero_grad()
        loss = add_gradients(objective, batch, passes, denominator, parts, watch, scale=scale)
        if recording is not None:
            recording.finish(denominator)
        idle = parts[:1] * self.world.idle(parts)
        add_gradients(
            objective, batch, lambda rows: self.current(rollout, rows, batch.top_tokens), denominator, idle, scale=0.0
        )
        return loss

    def current(self, rollout: Rollout, rows: slice, top_tokens: Tensor | None = None) -> dict[str, Tensor]:
        """The columns of the current policy with their graph, those that the objective asks for."""
        return self.policy.columns(
            rollout, rows, self.recipe.objective.needs, TOP if top_tokens is None else top_tokens
        )

    def signal(self, first: Tensor, whole: Tensor, parts: list[slice]) -> dict[str, Mean]:
        """Signal and noise of a gradient from its norm and that of its first micro-batch; NaN without equal pieces.

        Pieces are independent only if each holds whole groups, and comparable only if equally many.
        """
        rows = {part.stop - part.start for part in parts}
        equal = len(rows) == 1 and rows.pop() % self.config.group_size == 0 and self.world.size == 1
        n = len(parts) if equal else 1
        piece, square = (n * first).double().square(), whole.double().square()
        nothing = torch.full_like(piece, torch.nan)
        found = observatory.signal_from_norms(piece, square, n) if n > 1 else (nothing, nothing)
        names = ("gradient/signal", "gradient/noise")
        return {name: Mean(value, torch.ones_like(value)) for name, value in zip(names, found, strict=True)}

    def sync(self, step: int) -> dict[str, float]:
        """Hand the new weights to the engine and let the canary check that it uses them.

        An engine that dies here leaves its error in `failure`: the update before it was sound, and can be saved.
        """
        engine = self.collector.engine
        try:
            engine.wake()
            engine.sync(exported_weights(self.language_model.model), step)
            return self.canary.check(engine, self.policy, step)
        except EngineError as error:
            self.failure = error
            return {}

    def observe(self, collected: Collected, batch: Batch, step: int) -> dict[str, float]:
        """What the whole update did to entropy and regions (`etr.observatory`) and to the samples that are shown.

        It takes one pass more, after the last optimiser step; nothing at steps that `observe_every` leaves out.
        """
        every = self.config.observe_every
        if not every or step % every:
            return {}
        objective, rollout = self.recipe.objective, collected.rollout
        after = dataclasses.replace(batch, log_probs=self.pass_over(self.policy, rollout)["log_probs"])
        if samples.due(step, self.config.steps) and self.world.main:
            lm, items, rewards = self.language_model, collected.items, collected.rewards
            self.samples = samples.rows(after, rollout, items, rewards, lm, objective, step)
        found = observatory.read(observatory.observe(objective, after, batch.entropy))
        return {name: float(value) for name, value in found.items()}

    def own_parts(self, rollout: Rollout) -> list[slice]:
        """The rows of each micro-batch of this process; all passes share them, so that all see the same arithmetic.

        An objective that looks at whole groups or the whole batch gets those, whatever the budget of tokens is.
        """
        own = self.world.share(len(rollout.sequences) // self.config.group_size)
        start, stop = own.start * self.config.group_size, own.stop * self.config.group_size
        if (count := self.recipe.optimizer.micro_batches) is not None:
            parts = split(stop - start, count)
        else:
            undivided, budget = self.recipe.objective.undivided, self.config.micro_batch_tokens
            size, whole = self.config.group_size, undivided == "group"
            found = self.policy.micro_batches(rollout.rows(slice(start, stop)), size, budget, whole)
            parts = [slice(0, stop - start)] if undivided == "batch" else found
        own_parts = [slice(start + part.start, start + part.stop) for part in parts]
        shared = own_parts * self.world.size  # each process has parts of its own
        check_parts(self.recipe.objective, shared, self.config.group_size)
        return own_parts


def report(collected: Collected, batch: Batch, sums: dict[str, Mean]) -> dict[str, float]:
    """The metrics of a step, as numbers; entropy and reward are those of the policy that sampled the batch."""
    assert batch.entropy is not None  # set by `to_batch`
    rollout = collected.rollout
    sums = {
        **sums,
        **diagnostics.homogeneous(batch),
        "entropy": Mean.of(batch.entropy, batch.response_mask),
    }
    values = {name: float(mean.value) for name, mean in sums.items()}
    return {
        "reward": float(collected.rewards.mean()),
        "entropy": values.pop("entropy"),
        "kl": values.pop("policy/kl_old_to_new_k3"),
        "zero_grad_frac": values.pop("region/zero_grad_frac"),
        "length": float(rollout.lengths.float().mean()),
        "truncated": float((~rollout.finished).float().mean()),
        **collected.counts,
        **values,
    }
