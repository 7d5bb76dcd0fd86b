"""`etr promote` and `etr start`: from a validated recipe to a folder that trains, and its start."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

from rich.markup import escape
from tyro.conf import OmitArgPrefixes, Positional, arg

from etr.cli.llm import print_outcome, print_step, say
from etr.cli.options import choose_out, print_table, recipe_with, show_report
from etr.errors import InputError
from etr.llm.config import TrainConfig

Set = Annotated[tuple[str, ...], arg(name="set", metavar="FIELD=VALUE ...")]
HostSet = Annotated[tuple[str, ...], arg(name="host-set", metavar="KEY=VALUE ...")]


def promote(
    recipe: Annotated[Positional[str], arg(metavar="RECIPE")],
    to: Literal["llm", "verl", "trl"] = "llm",
    set_: Set = (),
    config: OmitArgPrefixes[TrainConfig] = TrainConfig(),  # noqa: B008  (tyro reads the fields; frozen)
    nodes: int = 1,
    gpus: int = 0,
    prompt_tokens: int = 512,
    host_set: HostSet = (),
    scorecard: Path | None = None,
    force: bool = False,
    out: Path | None = None,
) -> None:
    """Promote a validated recipe to real training: writes a folder that starts with one command.

    First: etr validate my_file.py:Mine

    Then: etr promote my_file.py:Mine --to llm --task arithmetic --set optimizer.updates=2

    On verl: etr promote my.yaml --to verl --model /models/qwen --task math.jsonl --prompts 128 --nodes 4 --gpus 8

    The folder has the recipe with all fields, the settings in the host's own terms, launch scripts, data preparation,
    the scorecard and a README. A recipe without a passing scorecard of this very code is refused.

    Args:
        recipe: An objective's name, a .yaml file, module:Class or path/to/file.py:Class.
        to: llm (our own trainer), verl (several nodes) or trl.
        set_: Fields of the recipe to change, for example optimizer.updates=2.
        config: What to train on what, as for `etr train`; what a host has no counterpart for is refused.
        nodes: Machines (verl).
        gpus: GPUs of each machine; 0 for a CPU.
        prompt_tokens: Longest prompt that verl and TRL make room for, in tokens.
        host_set: Settings of the host's own, such as actor_rollout_ref.rollout.tensor_model_parallel_size=2; those
            that follow from the recipe and the options above are refused.
        scorecard: The scorecard to pass with; runs/scorecards/<recipe>/scorecard.json if not given.
        force: Promote although the gate refuses. What it said is recorded in promotion.json and in the README.
        out: Folder to write; runs/promote-<recipe>-<host>-<time> if not given.
    """
    from etr.promote.folder import promote as write
    from etr.promote.job import Job

    loaded = recipe_with(recipe, set_)
    job = Job(loaded, to, config, nodes, gpus, prompt_tokens, _pairs(host_set))
    folder = choose_out(out, f"promote-{loaded.name}-{to}")
    translation, verdict = write(job, folder, scorecard, force)
    rows = [[escape(str(part)) for part in (t.ours, t.key, t.value, t.meaning)] for t in translation.terms if t.meaning]
    print_table(f"{loaded.name} in the terms of {to}", ["ours", to, "value", "meaning"], rows)
    for sentence in verdict.refused:
        say(f"forced: {sentence}")
    for sentence in (*translation.warnings, *verdict.warnings):
        say(f"note: {sentence}")
    run = shlex.quote(str(folder / "run.sh"))
    say(f"wrote {folder}; start it with: bash {run} (or read {folder / 'README.md'} first)")


def start(folder: Annotated[Positional[Path], arg(metavar="FOLDER")], check: bool = False) -> None:
    """Start a promoted folder, after checking that its files and the code of its loss are the promoted ones.

    Example: etr start runs/promote-etr-llm-20260101-120000

    Args:
        folder: What `etr promote` wrote.
        check: Only check.
    """
    from etr.llm import resumable, run
    from etr.llm.distributed import is_main
    from etr.promote.start import RUN, check_folder, settings

    host, recipe, processes = check_folder(folder, say if is_main() else lambda sentence: None)
    if check:
        say(f"'{folder}' is as it was promoted")
        return
    if host != "llm" or (processes > 1 and "WORLD_SIZE" not in os.environ):  # torchrun has not started this process
        _run_script(folder)
        return
    config, out = settings(folder), folder / RUN
    if out.exists() and not resumable.nothing_saved(out):
        if not resumable.can_continue(out):
            say(f"'{out}' is finished; look at it with: etr report {out}")
            return
        out = run.resume(out, None, say, print_step)
    else:
        out = run.start(recipe, config, out, out.exists(), say, print_step)
    if is_main():
        print_outcome(out)
        show_report(out)


def _run_script(folder: Path) -> None:
    """What run.sh does, with the interpreter that runs this unless PYTHON names another."""
    environment = {**os.environ, "PYTHON": os.environ.get("PYTHON") or sys.executable}
    if (status := subprocess.run(["bash", str(folder / "run.sh")], env=environment).returncode) != 0:
        raise InputError(f"'{folder / 'run.sh'}' ended with status {status}; its last lines say why")


def _pairs(assignments: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not (key and equals) or key in pairs:
            raise InputError(f"--host-set got '{text}'; write KEY=VALUE, each key once")
        pairs[key] = value
    return pairs


COMMANDS = {"promote": promote, "start": start}
