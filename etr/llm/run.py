"""One LLM run from start to end: evaluate, train with checkpoints, evaluate again; stops and resumes cleanly."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.files import read_json
from etr.llm import checkpoint
from etr.llm.config import TrainConfig
from etr.llm.evaluate import EvalResult, evaluate
from etr.llm.models import load_model
from etr.llm.tasks import load_task
from etr.llm.toy_tasks import TOY_LLAMA, TOY_TASKS
from etr.llm.train import Trainer, pick_device
from etr.llm.watch import Watch
from etr.recipe import Recipe, recipe_from_dict
from etr.runs import RunFolder, read_config, read_metrics

CHECKPOINTS, RESULTS, SAMPLES = "checkpoints", "eval.json", "samples.json"
SHOWN = 6  # sampled answers before and after training in the report
DEAD_STEPS = 5  # consecutive steps without any signal before the run says so

Say = Callable[[str], None]
Metrics = dict[str, float]
OnStep = Callable[[int, int, Metrics], None]


def start(recipe: Recipe, config: TrainConfig, out: Path, overwrite: bool, say: Say, on_step: OnStep) -> Path:
    """A new run in the folder `out`; returns it."""
    trainer = build(recipe, config, say)
    record = {"kind": "llm", "recipe": recipe.as_dict(), "settings": asdict(config)}
    with RunFolder.create(out, record, overwrite=overwrite) as folder:
        say(f"run folder: {folder.path}")
        before = held_out(trainer, say, "before training")
        if before is not None:
            folder.write_json(RESULTS, {"before": summary(before)})
            folder.write_json(SAMPLES, [{**row, "before": text, "reward_before": r} for row, text, r in shown(before)])
        return finish(trainer, folder, 1, say, on_step)


def resume(path: Path, steps: int | None, say: Say, on_step: OnStep) -> Path:
    """Continue a run from its last checkpoint, to `steps` if given, with the settings that its folder recorded."""
    record = read_config(path)
    if record.get("kind") != "llm":
        raise InputError(f"'{path}' holds no LLM run; give the folder that `etr train` wrote")
    recipe = recipe_from_dict(record["recipe"], default_name="recipe", where=f"{path}/config.yaml")
    config = TrainConfig.from_dict(record["settings"], **({} if steps is None else {"steps": steps}))
    trainer = build(recipe, config, say)
    newest = checkpoint.latest(path / CHECKPOINTS)
    if newest is None:
        raise InputError(f"'{path}' has no checkpoint yet; start again with --overwrite")
    step, trainer.state = checkpoint.load(newest, trainer.language_model.model, trainer.optimizer)
    with RunFolder.resume(path, step + 1) as folder:
        say(f"resuming {path} after step {step}")
        return finish(trainer, folder, step + 1, say, on_step, read_metrics(path))


def build(recipe: Recipe, config: TrainConfig, say: Say) -> Trainer:
    """Load task and model; everything that can be refused is refused here, before anything is written."""
    config.check()
    if config.model == TOY_LLAMA and config.task not in TOY_TASKS and not config.task.endswith(".jsonl"):
        raise InputError(f"model '{TOY_LLAMA}' cannot read task '{config.task}'; give task {' or '.join(TOY_TASKS)}")
    task = load_task(config.task, split="train", config=config.task_options, seed=config.seed)
    say(f"loading {config.model} ...")
    language_model = load_model(config.model, config.dtype)
    language_model.model.to(pick_device(config.device))
    return Trainer.create(recipe, config, language_model, task)


def finish(
    trainer: Trainer, folder: RunFolder, first: int, say: Say, on_step: OnStep, earlier: Sequence[Metrics] = ()
) -> Path:
    """Train from step `first`, keep checkpoints, evaluate; `earlier` are the rows before it. Returns the folder."""
    steps, done, dead = trainer.config.steps, first - 1, 0
    watch = Watch(len(trainer.language_model.model.get_output_embeddings().weight), earlier)
    with stop_signal(say) as stopped:
        for step in range(first, steps + 1):
            metrics = trainer.step(step)
            folder.log(step, metrics)
            on_step(step, steps, metrics)
            for sentence in watch.add(step, metrics):
                say(sentence)
            done = step
            dead = dead + 1 if metrics["group/homogeneous_frac"] == 1.0 else 0
            if dead == DEAD_STEPS:
                say(
                    f"for {dead} steps all rewards of every group were equal, so nothing was learned; choose an easier "
                    "or harder task, a larger group_size or a higher temperature"
                )
            if stopped() or step == steps or step % trainer.config.save_every == 0:
                save(trainer, folder, step)
            if stopped():
                break
    if done < steps:
        say(f"stopped after step {done}; continue with: etr train --resume {folder.path}")
    else:
        record(trainer, folder, say)
    return folder.path


def save(trainer: Trainer, folder: RunFolder, step: int) -> None:
    """A checkpoint of everything that the next step depends on."""
    checkpoint.save(folder.path / CHECKPOINTS, step, trainer.language_model, trainer.optimizer, trainer.state)


def record(trainer: Trainer, folder: RunFolder, say: Say) -> None:
    """Evaluate the trained model and put the results beside those from before training."""
    after = held_out(trainer, say, "after training")
    if after is None:
        return
    folder.write_json(RESULTS, {**read_json(folder.path / RESULTS), "after": summary(after)})
    before = read_json(folder.path / SAMPLES)  # the same questions in the same order
    new = [{"after": text, "reward_after": reward} for _, text, reward in shown(after)]
    folder.write_json(SAMPLES, [{**old, **row} for old, row in zip(before, new, strict=True)])


def summary(result: EvalResult) -> dict[str, Any]:
    """pass@k with intervals, and the share of answers cut off, as plain values."""
    intervals = {f"pass@{k}": interval._asdict() for k, interval in result.pass_at.items()}
    return {**intervals, "truncated": result.truncated, "questions": len(result.rows)}


def shown(result: EvalResult) -> Iterator[tuple[dict[str, Any], str, float]]:
    """Question, first sampled answer and its reward, for the questions that the report shows."""
    for row in result.rows[:SHOWN]:
        yield {"prompt": row.prompt, "answer": row.answer}, row.texts[0], row.rewards[0]


def held_out(trainer: Trainer, say: Say, when: str) -> EvalResult | None:
    """pass@k on questions that training never sees, with the same sampling seeds before and after."""
    config = trainer.config
    if config.eval_items == 0:
        return None
    task = load_task(config.task, split="held-out", config=config.task_options, seed=config.seed)
    say(f"evaluating {when} on {min(config.eval_items, len(task.items))} held-out questions ...")
    return evaluate(
        trainer.language_model, task, trainer.engine,
        items=config.eval_items, samples=config.eval_samples, ks=powers(config.eval_samples), seed=config.seed,
    )  # fmt: skip


def powers(samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to the number of samples: the k of pass@k."""
    return tuple(2**i for i in range(samples.bit_length()) if 2**i <= samples)


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
