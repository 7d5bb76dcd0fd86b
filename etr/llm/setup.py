"""From settings to a trainer: everything that can be refused is refused here, before anything is written."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch

from etr.errors import InputError
from etr.llm.attention import use_attention
from etr.llm.canary import Canary
from etr.llm.collect import Collector
from etr.llm.compiled_layers import compile_layers
from etr.llm.config import TrainConfig
from etr.llm.data.rows import is_source
from etr.llm.data.templates import load_templates
from etr.llm.distributed import World, shard
from etr.llm.lora import add_lora
from etr.llm.models import DTYPES, LanguageModel, load_model, recompute_layers
from etr.llm.optimizers import make_optimizer
from etr.llm.policy import Policy
from etr.llm.rewards import Grader
from etr.llm.rollout import EngineSettings, RolloutEngine, make_engine
from etr.llm.tasks import load_task
from etr.llm.toy_tasks import TOY_LLAMA, TOY_TASKS
from etr.llm.train import SUPPLIES, Trainer
from etr.recipe import Recipe
from etr.update import check_parts, split

SHARDED_DTYPES = ("float32", "bfloat16")  # of the passes: sharded weights are float32 masters

Say = Callable[[str], None]


def build(recipe: Recipe, config: TrainConfig, say: Say) -> Trainer:
    """Load task, model and engine. Raises InputError for settings, data or a model that cannot be trained."""
    config.check()
    device = pick_device(config.device)
    world = World.join(device)
    check_shared(config, world)
    check_recipe(recipe, config, world)
    task = load_task(config.task, split="train", config=config.task_options, seed=config.seed)
    say(f"loading {config.model} ...")
    # Sharded weights are float32 and computed with in `dtype`; alone, the optimizer keeps the float32 masters.
    attention = "sdpa" if config.attention == "auto" else config.attention
    language_model = load_model(config.model, config.dtype if world.size == 1 else "float32", attention)
    language_model.model.to(device)
    engine = start_engine(config, language_model, world, say)
    if config.attention == "auto":
        use_attention(language_model.model, device, config.packing, engine.name, say)
    reference = frozen_reference(config, language_model, world) if "ref_log_probs" in recipe.objective.needs else None
    if config.lora_rank:
        language_model = add_lora(language_model, config.lora_rank)
    if config.gradient_checkpointing:
        recompute_layers(language_model.model)
    if config.compile_layers:
        compile_layers(language_model)
    policy = Policy(language_model, config.temperature, config.packing)
    if world.size > 1:
        shard(language_model.model, DTYPES[config.dtype])
    templates = load_templates(config.templates)
    grader = Grader(task, config.reward, config.reward_timeout, say=say)
    return Trainer(
        recipe=recipe,
        config=config,
        language_model=language_model,
        policy=policy,
        optimizer=make_optimizer(recipe.optimizer, language_model, config.optimizer_state),
        collector=Collector(config, task, language_model, engine, grader, world, templates),
        canary=Canary.create(language_model, DTYPES[config.dtype]),
        state=recipe.objective.init_state((), device),
        reference=reference,
        world=world,
    )


def frozen_reference(config: TrainConfig, language_model: LanguageModel, world: World) -> Policy:
    """The weights before training as a policy of their own, in the format of the passes, sharded like the trained ones.

    Nothing is lost by the rounding: the passes of the trained policy round their weights alike, so that the two agree
    to the last bit until the first update.
    """
    copied = frozen_copy(language_model)
    copied.model.to(DTYPES[config.dtype])
    policy = Policy(copied, config.temperature, config.packing)
    if world.size > 1:
        shard(copied.model, DTYPES[config.dtype])
    return policy


def check_shared(config: TrainConfig, world: World) -> None:
    """Raise InputError for settings that several processes cannot have together."""
    world.share(config.prompts)
    if world.size > 1 and config.dtype not in SHARDED_DTYPES:
        raise InputError(f"dtype is {config.dtype}; several processes train in {' or '.join(SHARDED_DTYPES)}")
    if config.compile_layers and (world.size > 1 or config.gradient_checkpointing):
        other = "gradient_checkpointing" if world.size == 1 else f"{world.size} processes"
        raise InputError(f"compile_layers does not go together with {other}; switch it off")
    if world.size > 1 and config.optimizer_state != "float32":
        raise InputError(
            f"optimizer_state {config.optimizer_state} works in one process only; with {world.size} the moments are "
            "sharded, so use optimizer_state float32"
        )


def check_recipe(recipe: Recipe, config: TrainConfig, world: World) -> None:
    """Raise InputError for a model that cannot read the task, and an objective that this trainer cannot serve.

    So where the settings say that its groups or batches would be cut. Micro-batches by `micro_batch_tokens` never do.
    """
    if config.model == TOY_LLAMA and config.task not in TOY_TASKS and not is_source(config.task):
        raise InputError(f"model '{TOY_LLAMA}' cannot read task '{config.task}'; give task {' or '.join(TOY_TASKS)}")
    recipe.objective.require(SUPPLIES, "the LLM trainer")
    objective, count = recipe.objective, recipe.optimizer.micro_batches
    if objective.undivided == "batch" and world.size > 1:
        raise InputError(
            f"objective '{objective.name}' looks at a whole batch at a time, which {world.size} processes would share "
            "out; train it in one"
        )
    if count is None:
        return
    for rank in range(world.size):
        share = World(rank, world.size).share(config.prompts)
        parts = split((share.stop - share.start) * config.group_size, count)
        check_parts(objective, parts, config.group_size)


def start_engine(config: TrainConfig, language_model: LanguageModel, world: World, say: Say) -> RolloutEngine:
    """The rollout engine, the same on all processes, in `config.dtype` also where the trained weights are float32.

    Raises InputError as `make_engine` does, and where the processes end up with different engines.
    """
    settings, shape = EngineSettings(config.max_new_tokens, config.temperature), language_model
    if language_model.model.dtype != DTYPES[config.dtype]:
        shape = frozen_copy(language_model)
        shape.model.to(DTYPES[config.dtype])
    engine: Any = make_engine(config.engine, shape, settings, say)
    engine.language_model = language_model  # only the start needed a copy
    if len(names := set(world.gather(engine.name))) > 1:
        raise InputError(f"the processes started different engines ({', '.join(sorted(names))}); name one by --engine")
    if world.size > 1 and config.lora_rank and engine.name != "transformers":
        raise InputError("LoRA in several processes samples with the trainer's own model; use --engine transformers")
    if world.size > 1 and config.refills and engine.name == "transformers":
        raise InputError(
            "refills is set, and several processes that sample with the trainer's own sharded model must do so equally "
            "often; use --engine vllm, or refills 0"
        )
    started: RolloutEngine = engine
    return started


def frozen_copy(language_model: LanguageModel) -> LanguageModel:
    """The same weights in memory of their own, never trained."""
    return dataclasses.replace(language_model, model=copy.deepcopy(language_model.model).requires_grad_(False))


def pick_device(name: str) -> torch.device:
    """A device by name; `auto` is a GPU where there is one, each process its own. InputError for one not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"device '{name}' is not available here ({str(error).splitlines()[0]}); use cpu or auto"
        ) from None
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device
