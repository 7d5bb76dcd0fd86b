"""`etr train` and `etr eval`: a language model through the same loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from rich.markup import escape
from tyro.conf import OmitArgPrefixes, arg

from etr.cli.options import choose_out, console, interval, print_table, recipe_with, show_report
from etr.llm.config import TrainConfig

Set = Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE ...")]


def train(
    recipe: str = "etr",
    set_: Set = (),
    config: OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    out: Path | None = None,
    overwrite: bool = False,
    resume: Path | None = None,
    extend_to: int | None = None,
) -> None:
    """Train a language model on a verifiable task, with the loss that the toy environments use.

    A laptop example: etr train --recipe etr --model smollm2-135m --task arithmetic --set optimizer.updates=2

    Within a minute: etr train --model toy-llama --task mod-arithmetic --prompts 16 --group-size 16 --steps 40

    Your own things: etr train --recipe my.yaml --model ./my-model --task questions.jsonl --max-new-tokens 64

    After Ctrl-C or a crash: etr train --resume runs/train-etr-20260101-120000

    Args:
        recipe: An objective's name, a .yaml file or module:Class.
        set_: Fields of the recipe to change, for example micro=0.3 optimizer.lr=2e-6.
        config: What to train on what, and for how long.
        out: Folder for the run; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
        resume: Folder of a run to continue from its last checkpoint; all other options are read from it.
        extend_to: With --resume: train up to this step instead of the recorded number.
    """
    from etr.llm import run

    if resume is not None:
        folder = run.resume(resume, extend_to, say, print_step)
    else:
        loaded = recipe_with(recipe, set_)
        folder = choose_out(out, f"train-{loaded.name}")
        run.start(loaded, config, folder, overwrite, say, print_step)
    print_outcome(folder)
    show_report(folder)


def say(message: str) -> None:
    """A plain line of progress."""
    console.print(f"etr: {message}", markup=False, soft_wrap=True)


def print_step(step: int, steps: int, metrics: dict[str, float]) -> None:
    """The progress line of one step; a dash for zero-grad means that no token had an advantage."""
    left = (steps - step) * metrics["seconds"] / 60
    clipped = "  -  " if math.isnan(metrics["zero_grad_frac"]) else f"{metrics['zero_grad_frac']:.3f}"
    console.print(
        f"step {step:>4}/{steps}  reward {metrics['reward']:.3f}  entropy {metrics['entropy']:.3f}  "
        f"KL {metrics['kl']:.4f}  zero-grad {clipped}  truncated {metrics['truncated']:.2f}  "
        f"{metrics['tokens_per_s']:.0f} tok/s  {left:.1f} min left",
        soft_wrap=True,
    )


def print_outcome(folder: Path) -> None:
    """What training changed on held-out questions: pass@k, and one sampled answer to each of a few of them."""
    from etr.files import read_json
    from etr.llm.run import RESULTS, SAMPLES

    results = read_json(folder / RESULTS) if (folder / RESULTS).exists() else {}
    if "after" not in results:  # not evaluated, or stopped before the end
        return
    names = [name for name in results["after"] if name.startswith("pass@")]
    rows = [[name, *(interval(results[when][name], "estimate") for when in ("before", "after"))] for name in names]
    caption = "mean over held-out questions [95 % interval, bootstrap over questions]"
    print_table("Held-out questions", ["measure", "before", "after"], rows, caption)
    rows = [
        [escape(repr(row[k])) for k in ("prompt", "answer", "before", "after")] for row in read_json(folder / SAMPLES)
    ]
    print_table("Sampled answers", ["question", "right answer", "before", "after"], rows)


def eval_command(
    model: str = "smollm2-135m",
    task: str = "arithmetic",
    items: int = 50,
    samples: int = 8,
    k: tuple[int, ...] = (1, 2, 4, 8),
    max_new_tokens: int = 8,
    temperature: float = 1.0,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Evaluate a model on held-out questions: pass@1 and unbiased pass@k with 95 % intervals over questions.

    Example: etr eval --model runs/demo/llm/checkpoints/step-60 --task arithmetic --items 100

    Args:
        model: smollm2-135m, a Hugging Face folder (a checkpoint of `etr train` is one) or hub id, tiny-random, or
            toy-llama, which knows only copy-reverse and mod-arithmetic.
        task: arithmetic, copy-reverse, mod-arithmetic, a reasoning-gym dataset, or a .jsonl file (prompt, answer).
        items: Held-out questions.
        samples: Answers sampled for each question.
        k: The k of pass@k, each at most `samples`.
        max_new_tokens: Longest answer in tokens.
        temperature: Sampling temperature.
        seed: Number that fixes questions and samples.
        out: File for one JSON line per question with all its answers.
    """
    from etr.llm.evaluate import evaluate
    from etr.llm.models import load_model
    from etr.llm.rollout import TransformersEngine
    from etr.llm.tasks import load_task

    held_out = load_task(task, split="held-out", seed=seed)
    language_model = load_model(model)
    engine = TransformersEngine(language_model, max_new_tokens, temperature)
    result = evaluate(language_model, held_out, engine, items=items, samples=samples, ks=k, seed=seed)
    rows = [[f"pass@{k}", f"{i.estimate:.3f}", f"[{i.low:.3f}, {i.high:.3f}]"] for k, i in result.pass_at.items()]
    caption = (
        f"{len(result.rows)} questions, {samples} samples each; intervals: bootstrap over questions. "
        f"Cut off at {max_new_tokens} tokens: {result.truncated:.0%} of the answers"
    )
    print_table(f"{model} on {task}", ["measure", "estimate", "95 % interval"], rows, caption)
    if out is not None:
        result.write(out)


COMMANDS = {"train": train, "eval": eval_command}
