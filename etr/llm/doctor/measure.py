"""One real step at learning rate 0: its memory, its speed, and how much of what a run will see is rounding."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from etr.batch import Batch
from etr.llm.canary import largest, mismatch
from etr.llm.config import TrainConfig
from etr.llm.doctor.findings import Finding
from etr.llm.doctor.work import Work, work_in
from etr.llm.peak import Peak
from etr.llm.policy import lengths
from etr.llm.rollout import Rollout
from etr.llm.setup import build, pick_device
from etr.llm.train import Trainer
from etr.recipe import Recipe

Say = Callable[[str], None]
QUIET = 1e-3  # share of tokens outside the region at lr = 0 that no reader of a clip fraction would notice


@dataclass(frozen=True)
class Measured:
    """What one step took and how exact it was.

    peaks: bytes by phase, above what the process held before the model was loaded; seconds by phase; sampled: tokens of
    the rollout; trained: answer tokens through forward and backward, over all updates; read: the same with each prompt
    counted once an update; noise: see `noise_floor`; engine: the one that sampled; weights: numbers in the model;
    work: the step's sizes, to plan it again.
    """

    peaks: dict[str, int]
    seconds: dict[str, float]
    sampled: int
    trained: int
    read: int
    noise: dict[str, float]
    engine: str
    weights: int
    work: Work

    @property
    def throughput(self) -> dict[str, float]:
        """Tokens of answers per second."""
        return {
            "rollout": self.sampled / self.seconds["rollout"],
            "update": self.trained / self.seconds["update"],
            "step": self.sampled / sum(self.seconds.values()),
        }


def measure(recipe: Recipe, config: TrainConfig, say: Say) -> Measured:
    """Build the trainer and run two steps at lr = 0, the first to warm up. Raises InputError as `etr train` would."""
    still = recipe.replace({"optimizer.lr": 0.0, "optimizer.weight_decay": 0.0})
    peak = Peak(pick_device(config.device))
    with build(still, config, say) as trainer:
        say("a step to warm up ...")
        trainer.step(1)
        say("a step to measure ...")
        return measured_step(trainer, peak, 2)


def measured_step(trainer: Trainer, peak: Peak, step: int) -> Measured:
    """`Trainer.step` in its phases, each with its own clock and peak. Its recipe should have lr = 0."""
    peaks: dict[str, int] = {}
    seconds: dict[str, float] = {}

    def phase(name: str, start: float) -> float:
        peaks[name] = peak.read()  # waits for a GPU
        seconds[name] = time.perf_counter() - start
        peak.restart()
        return time.perf_counter()

    peak.restart()
    clock = time.perf_counter()
    collected = trainer.collector.collect(step)
    clock = phase("rollout", clock)
    batch = trainer.to_batch(collected)
    batch, trainer.state = trainer.recipe.objective.prepare(batch, trainer.state)
    clock = phase("scoring", clock)
    batch, *_ = trainer.update(collected.rollout, batch, step)
    clock = phase("update", clock)
    trainer.sync(step)
    phase("sync", clock)
    rollout, updates = collected.rollout, trainer.recipe.optimizer.updates
    answers = int(batch.response_mask.sum())
    prompts = int(rollout.attention_mask[:, : rollout.prompt_width].sum()) // trainer.config.group_size
    return Measured(
        peaks,
        seconds,
        sampled=int(rollout.lengths.sum()),
        trained=updates * answers,
        read=updates * (answers + prompts),
        noise=noise_floor(trainer, rollout, batch),
        engine=trainer.collector.engine.name,
        weights=sum(p.numel() for p in trainer.language_model.model.parameters()),
        work=work_in(lengths(rollout), trainer.own_parts(rollout), trainer.policy.cheapest),
    )


def noise_floor(trainer: Trainer, rollout: Rollout, batch: Batch) -> dict[str, float]:
    """What differs although no weight moved [nats/token, and shares of tokens outside the recipe's region].

    update: the trainer's log-probs after the updates against those before; rollout: the engine's against the trainer's.
    """
    assert batch.rollout_log_probs is not None  # set by `Trainer.to_batch`
    new = trainer.pass_over(trainer.policy, rollout)["log_probs"]
    update = dataclasses.replace(batch, old_log_probs=new, rollout_log_probs=batch.old_log_probs)
    found = {}
    for name, pair in {"update": update, "rollout": batch}.items():
        means = mismatch(trainer.recipe.objective, pair)
        found[f"{name}/mean"] = float(means["mismatch/mean"].value)
        found[f"{name}/max"] = float(torch.as_tensor(largest(pair)).max())
        found[f"{name}/outside"] = float(means["mismatch/outside"].value)
    return found


def noise_findings(noise: dict[str, float], corrected: bool) -> list[Finding]:
    """What the noise floor means for the run. corrected: the recipe has a correction for the engine's log-probs."""
    found = []
    if noise["update/outside"] > QUIET:
        text = (
            f"at lr = 0, {noise['update/outside']:.1%} of the tokens lie outside the region after the updates: a clip "
            "fraction of that size is rounding, not learning"
        )
        found.append(Finding("warning", text, "--dtype float32, or report it beside every clip fraction"))
    if noise["rollout/outside"] > QUIET and not corrected:
        text = (
            f"the engine's log-probs put {noise['rollout/outside']:.1%} of the tokens outside the region (mean "
            f"{noise['rollout/mean']:.2g}, max {noise['rollout/max']:.2g} nats): it samples from another policy than "
            "the one that is trained"
        )
        found.append(Finding("warning", text, "--set correction.kind=tis, or --dtype float32"))
    return found
