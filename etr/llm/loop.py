"""The steps of one run: train, evaluate, log, keep checkpoints, and stop when a rule of `etr.llm.faults` says so."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from etr.llm import checkpoint, held_out, keep, samples
from etr.llm.evaluate import EvalResult
from etr.llm.faults import Guard, dead_engine, exploding_kl, hanging_reward
from etr.llm.rollout import EngineError
from etr.llm.tracking import Trackers
from etr.llm.train import Trainer
from etr.llm.watch import Watch
from etr.runs import RunFolder

CHECKPOINTS = "checkpoints"
DEAD_STEPS = 5  # consecutive steps without any signal before the run says so

Say = Callable[[str], None]
Metrics = dict[str, float]
OnStep = Callable[[int, int, Metrics], None]


class Loop:
    """A run between its start or resume and its end. earlier: rows of metrics from before a resume.

    Of several processes all train and gather, and only the main one writes and speaks.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        trackers: Trackers,
        say: Say,
        on_step: OnStep,
        earlier: Sequence[Metrics] = (),
    ) -> None:
        config = trainer.config
        self.trainer, self.folder, self.trackers, self.say, self.on_step = trainer, folder, trackers, say, on_step
        self.checkpoints = folder.path / CHECKPOINTS
        self.main = trainer.world.main
        self.watch = Watch(len(trainer.language_model.model.get_output_embeddings().weight), earlier)
        self.guard = Guard([exploding_kl(), hanging_reward(config.prompts * config.group_size)], earlier)
        self.dead = 0
        self.latest: EvalResult | None = None  # held-out result of the last step, if it was evaluated

    def run(self, first: int) -> int:
        """Train from step `first` to the last one or until a signal; returns the step that was finished last.

        Raises InputError as `Trainer.step`, `Guard.add` and `checkpoint.save` do.
        """
        world, steps, done = self.trainer.world, self.trainer.config.steps, first - 1
        with stop_signal(self.say) as stopped:
            for step in range(first, steps + 1):
                metrics = self.step(step)
                best = self.evaluate(step, metrics)
                metrics, best = world.gather((metrics, best))[0]  # one word decides of what all must do together
                self.record(step, metrics)
                self.guard.add(step, metrics)
                done, stop = step, world.agree(stopped())
                if (failure := self.failure()) is not None:
                    self.save(step)
                    raise dead_engine(failure, step, self.folder.path) from failure
                due = best or step % self.trainer.config.save_every == 0
                if stop or step == steps or (due and self.guard.calm):
                    self.save(step)
                if best and self.guard.calm and self.main:
                    keep.mark_best(self.checkpoints, step, metrics[held_out.SCORE])
                    keep.prune(self.checkpoints, self.trainer.config.keep_last)
                if stop:
                    break
        return done

    def step(self, step: int) -> Metrics:
        """One step of the trainer; an engine that dies before the update leaves a checkpoint of the weights so far."""
        try:
            return self.trainer.step(step)
        except EngineError as error:
            alone = self.trainer.world.size == 1  # other processes know nothing of it, and their help would be needed
            if alone:
                self.save(step - 1)
            raise dead_engine(error, step - 1 if alone else None, self.folder.path) from error

    def failure(self) -> EngineError | None:
        """What killed the engine of this process or of another one after the last update, if anything did."""
        own = self.trainer.failure
        found = [text for text in self.trainer.world.gather(None if own is None else str(own)) if text is not None]
        return own or (EngineError(found[0]) if found else None)

    def evaluate(self, step: int, metrics: Metrics) -> bool:
        """Adds the held-out scores to the metrics of a step where they are due; True if they are the best so far."""
        every, self.latest = self.trainer.config.eval_every, None
        if every == 0 or step % every != 0 or self.failure() is not None:
            return False
        try:
            self.latest = held_out.held_out(self.trainer, self.say, f"after step {step}")
        except EngineError as error:
            self.trainer.failure = error
        if self.latest is None:
            return False
        metrics |= held_out.metrics(self.latest)
        best = keep.read_best(self.checkpoints)
        return best is None or metrics[held_out.SCORE] > best.value

    def record(self, step: int, metrics: Metrics) -> None:
        """Rows and samples on disk, points to the trackers, progress and warnings to the reader."""
        steps = self.trainer.config.steps
        if self.main:
            self.folder.log(step, metrics)
            if samples.due(step, steps):
                self.folder.append(samples.FILE, self.trainer.samples)
        self.trackers.add(step, metrics)
        self.on_step(step, steps, metrics)
        for sentence in self.watch.add(step, metrics):
            self.say(sentence)
        self.dead = self.dead + 1 if metrics["group/homogeneous_frac"] == 1.0 else 0
        if self.dead == DEAD_STEPS:
            self.say(
                f"for {DEAD_STEPS} steps all rewards of every group were equal, so nothing was learned; choose an "
                "easier or harder task, a larger group_size or a higher temperature"
            )

    def save(self, step: int) -> None:
        """A checkpoint of everything that the next step depends on, unless this one has it already.

        Rows that wait for room on the disk go first: a resume must find every row up to its checkpoint.
        """
        trainer = self.trainer
        if trainer.world.gather((self.checkpoints / f"step-{step}").exists())[0]:
            return
        self.folder.flush()
        checkpoint.save(
            self.checkpoints,
            step,
            trainer.language_model,
            trainer.optimizer,
            trainer.state,
            engine_version=trainer.collector.engine.version,
            keep_last=trainer.config.keep_last + (not self.guard.calm),  # do not push out the last good one
            writes=self.main,
        )


@contextmanager
def stop_signal(say: Say) -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the running step; the second stops at once."""
    caught: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        say("finishing this step, then saving (press Ctrl-C again to stop at once) ...")

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
