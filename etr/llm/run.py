"""One LLM run from start to end: evaluate, train with checkpoints, evaluate again; stops and resumes cleanly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etr.errors import InputError
from etr.llm import checkpoint, held_out, keep, random_states, tracking
from etr.llm.config import TrainConfig
from etr.llm.distributed import World, is_main
from etr.llm.loop import CHECKPOINTS, Loop, Metrics, OnStep, Say
from etr.llm.setup import build, pick_device
from etr.llm.train import Trainer
from etr.recipe import Recipe, recipe_from_dict
from etr.recorded import FILE, load
from etr.recording import ENOUGH, Recording
from etr.runs import RunFolder, read_config, read_metrics


def start(recipe: Recipe, config: TrainConfig, out: Path, overwrite: bool, say: Say, on_step: OnStep) -> Path:
    """A new run in the folder `out`; returns it. Whatever can be refused is refused before anything is written."""
    config.check()
    tracking.check(config.track)
    random_states.seed(config.seed)
    say, on_step = voices(say, on_step)
    with build(recipe, config, say) as trainer:
        record = {"kind": "llm", "recipe": recipe.as_dict(), "settings": asdict(config)}
        # The others may have another name for it: a default one has the time in it.
        with trainer.world.by_main(lambda: RunFolder.create(out, record, overwrite=overwrite)) as folder:
            say(f"run folder: {folder.path}")
            record_first(trainer, folder.path)
            trainer.begin(0)
            before = held_out.held_out(trainer, say, "before training")
            if before is not None and trainer.world.main:
                held_out.before(before, folder)
            return finish(trainer, folder, record, 1, say, on_step)


def resume(path: Path, steps: int | None, say: Say, on_step: OnStep) -> Path:
    """Continue a run from its newest whole checkpoint, to `steps` if given, with the settings that its folder recorded.

    Raises InputError when the folder holds no LLM run, or no checkpoint that can be used.
    """
    record = read_config(path)
    if record.get("kind") != "llm":
        raise InputError(f"'{path}' holds no LLM run; give the folder that `etr train` wrote")
    recipe = recipe_from_dict(record["recipe"], default_name="recipe", where=f"{path}/config.yaml")
    config = TrainConfig.from_dict(record["settings"], **({} if steps is None else {"steps": steps}))
    tracking.check(config.track)
    say, on_step = voices(say, on_step)
    world = World.join(pick_device(config.device))
    path, newest = world.by_main(lambda: (path, keep.usable(path / CHECKPOINTS, say)))  # it renames damaged ones
    if newest is None:
        raise InputError(f"'{path}' has no checkpoint yet; start again with --overwrite")
    with build(recipe, config, say) as trainer:
        found = checkpoint.load(newest, trainer.language_model.model, trainer.optimizer)
        trainer.state = found.state
        trainer.begin(found.step)  # the engine was started with the weights from before training
        with world.by_main(lambda: RunFolder.resume(path, found.step + 1)) as folder:
            say(f"resuming {path} after step {found.step}")
            for sentence in changed(found.versions):
                say(sentence)
            record_first(trainer, path)
            rows = world.by_main(lambda: read_metrics(path))
            return finish(trainer, folder, record, found.step + 1, say, on_step, rows)


def record_first(trainer: Trainer, folder: Path) -> None:
    """Let the main process record one of the first updates for `etr replay`, unless it has one that shows a region."""
    if trainer.world.main and not shows_region(folder / FILE):
        settings = {
            "processes": trainer.world.size,
            "dtype": str(trainer.language_model.model.dtype).split(".")[-1],
            "reward_bounds": list(trainer.collector.grader.bounds),
            "overlong": trainer.config.overlong,
        }
        trainer.recording = Recording(folder / FILE, trainer.recipe, "llm", settings)


def shows_region(file: Path) -> bool:
    """Is there a readable record in which the policy had moved, and some token had a gradient?"""
    try:
        found = load(file)
    except InputError:
        return False
    return found.moved >= ENOUGH and bool(found.gradient.any())


def finish(
    trainer: Trainer,
    folder: RunFolder,
    record: dict[str, Any],
    first: int,
    say: Say,
    on_step: OnStep,
    earlier: Sequence[Metrics] = (),
) -> Path:
    """Train from step `first`, then evaluate; `earlier` are the rows before it. Returns the folder."""
    names = trainer.config.track if trainer.world.main else ()
    with tracking.Trackers(names, folder.path, record, first, say) as trackers:
        loop = Loop(trainer, folder, trackers, say, on_step, earlier)
        done = loop.run(first)
    if done < trainer.config.steps:
        say(f"stopped after step {done}; continue with: etr train --resume {folder.path}")
        return folder.path
    after = loop.latest or held_out.held_out(trainer, say, "after training")
    if after is not None and trainer.world.main:
        held_out.after(after, folder)
    return folder.path


def voices(say: Say, on_step: OnStep) -> tuple[Say, OnStep]:
    """Of several processes only the main one speaks."""
    return (say, on_step) if is_main() else (lambda text: None, lambda *step: None)


def changed(versions: dict[str, str]) -> list[str]:
    """A sentence if packages are not the ones that wrote the checkpoint: then the bits of what follows may differ."""
    now = checkpoint.versions()
    other = [f"{name} {old} is now {now.get(name, 'gone')}" for name, old in versions.items() if now.get(name) != old]
    return [f"since the checkpoint {', '.join(other)}: the run goes on, but not bit for bit"] if other else []
