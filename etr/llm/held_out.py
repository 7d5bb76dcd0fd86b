"""Held-out questions of a run: before, during and after training, with the same sampling seeds each time.

Several processes share them out, and all have the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from etr.files import read_json
from etr.llm.evaluate import EvalResult, evaluate
from etr.llm.tasks import load_task
from etr.llm.train import Trainer
from etr.runs import RunFolder

RESULTS, SAMPLES = "eval.json", "samples.json"
SHOWN = 6  # sampled answers before and after training in the report
SCORE = "held_out/pass@1"  # what the best checkpoint is the best in

Say = Callable[[str], None]


def held_out(trainer: Trainer, say: Say, when: str) -> EvalResult | None:
    """pass@k on questions that training never sees; None if the settings ask for no evaluation."""
    config = trainer.config
    if config.eval_items == 0:
        return None
    task = load_task(config.task, split="held-out", config=config.task_options, seed=config.seed)
    say(f"evaluating {when} on {min(config.eval_items, len(task.items))} held-out questions ...")
    return evaluate(
        trainer.language_model, task, trainer.collector.engine, grader=trainer.collector.grader, seed=config.seed,
        world=trainer.world, items=config.eval_items, samples=config.eval_samples, ks=powers(config.eval_samples),
    )  # fmt: skip


def before(result: EvalResult, folder: RunFolder) -> None:
    """Record what the untrained model does."""
    folder.write_json(RESULTS, {"before": summary(result)})
    rows = [{**question, "before": text, "reward_before": reward} for question, text, reward in shown(result)]
    folder.write_json(SAMPLES, rows)


def after(result: EvalResult, folder: RunFolder) -> None:
    """Put the results of the trained model beside those from before training."""
    folder.write_json(RESULTS, {**read_json(folder.path / RESULTS), "after": summary(result)})
    old = read_json(folder.path / SAMPLES)  # the same questions in the same order
    new = [{"after": text, "reward_after": reward} for _, text, reward in shown(result)]
    folder.write_json(SAMPLES, [{**first, **last} for first, last in zip(old, new, strict=True)])


def metrics(result: EvalResult) -> dict[str, float]:
    """pass@k as metrics of a step."""
    return {f"held_out/pass@{k}": interval.estimate for k, interval in result.pass_at.items()}


def summary(result: EvalResult) -> dict[str, Any]:
    """pass@k with intervals, and the share of answers cut off, as plain values."""
    intervals = {f"pass@{k}": interval._asdict() for k, interval in result.pass_at.items()}
    return {**intervals, "truncated": result.truncated, "questions": len(result.rows)}


def shown(result: EvalResult) -> Iterator[tuple[dict[str, Any], str, float]]:
    """Question, first sampled answer and its reward, for the questions that the report shows."""
    for row in result.rows[:SHOWN]:
        yield {"prompt": row.prompt, "answer": row.answer}, row.texts[0], row.rewards[0]


def powers(samples: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to the number of samples: the k of pass@k.

    >>> powers(10)
    (1, 2, 4, 8)
    """
    return tuple(2**i for i in range(samples.bit_length()) if 2**i <= samples)
