"""`etr train`: a language model through the same loss."""

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
    resume: str | None = None,
    extend_to: int | None = None,
) -> None:
    """Train a language model on a verifiable task, with the loss that the toy environments use.

    A laptop example: etr train --recipe etr --model smollm2-135m --task arithmetic --set optimizer.updates=2

    Within a minute: etr train --model toy-llama --task mod-arithmetic --prompts 16 --group-size 16 --steps 40

    Your own things: etr train --recipe my.yaml --model ./my-model --task questions.jsonl --max-new-tokens 64

    After Ctrl-C or a crash: etr train --resume auto

    Args:
        recipe: An objective's name, a .yaml file or module:Class.
        set_: Fields of the recipe to change, for example micro=0.3 optimizer.lr=2e-6.
        config: What to train on what, and for how long.
        out: Folder for the run; runs/<name>-<time> if not given.
        overwrite: Replace a run that is already in that folder.
        resume: Folder of a run to continue from its last whole checkpoint, or auto for the newest run under runs/ (or
            --out) that can continue; all other options are read from it. With auto and an --out that is not there yet,
            or has no checkpoint yet, a new run starts, so that one command line also serves after a crash.
        extend_to: With --resume: train up to this step instead of the recorded number.
    """
    from etr.llm import resumable, run
    from etr.llm.distributed import is_main

    earlier = None if resume is None else resumable.to_continue(resume, out, extend_to)
    if earlier is not None:
        folder = run.resume(earlier, extend_to, say, print_step)
    else:
        loaded = recipe_with(recipe, set_)
        folder = choose_out(out, f"train-{loaded.name}")
        if resume is not None and resumable.nothing_saved(folder):
            say(f"'{folder}' has no checkpoint yet; its run is begun again")
            overwrite = True
        run.start(loaded, config, folder, overwrite, say, print_step)
    if is_main():
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
    from etr.llm.held_out import RESULTS, SAMPLES

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


COMMANDS = {"train": train}
