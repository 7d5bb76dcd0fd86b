"""What is refused before a run begins: versions, settings and batch layouts under which the loss would be another one.

Where possible a behaviour is looked at and not a version number.
"""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import MISSING, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from etr.adapters.trl_settings import ENGINE, LOSS_ARGUMENTS, SUPPLIES, TESTED, arguments, corrects
from etr.errors import InputError
from etr.objective import Objective
from etr.recipe import Recipe

# Methods of GRPOTrainer that the adapter overrides or calls, with the parameters that it relies on.
PARTS = {
    "_compute_loss": ("model", "inputs"),
    "_prepare_inputs": ("generation_batch",),
    "_generate_and_score_completions": ("inputs",),
    "_calculate_rewards": ("inputs", "prompts", "completions", "completion_ids_list"),
    "_get_per_token_logps_and_entropies": ("model", "input_ids", "attention_mask", "logits_to_keep", "compute_entropy"),
    "_save_checkpoint": ("model", "trial"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "training_step": ("model", "inputs", "num_items_in_batch"),
}
# What bends the sampling distribution away from the one whose log-probs the trainer computes, and its neutral values.
SAMPLING: dict[str, tuple[object, ...]] = {
    "top_p": (1.0, None),
    "top_k": (0, -1, None),
    "min_p": (None, 0.0),
    "repetition_penalty": (1.0, None),
}


def check_version() -> None:
    """Refuse a TRL older than the tested range or none at all; warn of a newer one."""
    first, last = TESTED
    how = f"pip install 'trl>={first},<={last}'"
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise InputError(f"TRL is not installed; {how}") from None
    if numbers(found) < numbers(first):
        raise InputError(
            f"TRL {found} is older than {first}, the first that works; pip install 'trl>={first},<={last}'"
        )
    if numbers(found)[:2] > numbers(last)[:2]:
        warnings.warn(
            f"TRL {found} is newer than {last}, the last that was tested; run tests/adapters/trl with it before you "
            "trust it",
            stacklevel=2,
        )


def numbers(text: str) -> tuple[int, ...]:
    """A version as numbers that compare.

    >>> numbers("1.16.0") > numbers("1.7.0"), numbers("1.16.0.dev0")
    (True, (1, 16, 0))
    """
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def check_parts(trainer: type) -> None:
    """Refuse a trainer that lacks a method or parameter which the adapter builds on."""
    for name, wanted in PARTS.items():
        method = getattr(trainer, name, None)
        found = {} if method is None else inspect.signature(method).parameters
        anything = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= {p.kind for p in found.values()}
        missing = [] if anything else [parameter for parameter in wanted if parameter not in found]
        if missing or method is None:
            what = f"no {name}" if method is None else f"a {name} without {', '.join(missing)}"
            raise InputError(
                f"this version of TRL has {what}, on which the adapter builds; "
                f"install one between {TESTED[0]} and {TESTED[1]}"
            )


def check_arguments(recipe: Recipe, config: Any) -> None:
    """Refuse arguments of `GRPOConfig` that contradict the recipe, or that TRL would apply a second time."""
    fixed = arguments(recipe)
    defaults = {field.name: field.default for field in fields(config) if field.default is not MISSING}
    for name in LOSS_ARGUMENTS:
        allowed = (defaults.get(name), fixed.get(name, defaults.get(name)))
        if name in defaults and getattr(config, name) not in allowed:
            raise InputError(
                f"GRPOConfig.{name} is {getattr(config, name)!r}, but the loss is that of recipe '{recipe.name}'; "
                f"leave {name} out and set the recipe's own field"
            )
    for name, value in fixed.items():
        if name == "vllm_importance_sampling_correction" and not value:
            continue  # TRL's own correction is the user's to choose where the recipe has none
        if getattr(config, name) != value:
            raise InputError(
                f"GRPOConfig.{name} is {getattr(config, name)!r}, but recipe '{recipe.name}' means {value!r}; "
                "build it as GRPOConfig(..., **etr.adapters.trl_settings.arguments(recipe)), or change the recipe"
            )
    _check_sampling(config)
    if config.use_liger_kernel:
        raise InputError("use_liger_kernel computes a loss of its own; set GRPOConfig.use_liger_kernel=False")


def _check_sampling(config: Any) -> None:
    own = dict(config.generation_kwargs or {})
    for name, neutral in SAMPLING.items():
        value = own.get(name, getattr(config, name))
        if value not in neutral:
            raise InputError(
                f"{name} is {value!r}: tokens are then sampled from another distribution than the one whose log-probs "
                f"make the ratio; set {name}={neutral[0]!r}"
            )
    if own.get("temperature", config.temperature) != config.temperature:
        raise InputError("generation_kwargs change the temperature; set GRPOConfig.temperature instead")


def check_layout(recipe: Recipe, config: Any, processes: int) -> None:
    """Refuse ways to cut a generation batch that the objective cannot take; warn where no clipping can happen."""
    objective = recipe.objective
    parts, window = config.steps_per_generation, config.gradient_accumulation_steps
    if parts % window:
        raise InputError(
            f"steps_per_generation is {parts} and gradient_accumulation_steps {window}: an optimiser step would join "
            "parts of several generations; make steps_per_generation a multiple of gradient_accumulation_steps"
        )
    if objective.undivided and (parts > 1 or processes > 1):
        raise InputError(
            f"objective '{objective.name}' looks at a whole {objective.undivided} at a time, but TRL shuffles the "
            "responses and cuts them; use one process and steps_per_generation=1"
        )
    available = set(SUPPLIES) - (set() if config.use_vllm else set(ENGINE))
    objective.require(available, "TRL without vLLM")
    if corrects(recipe) and not config.use_vllm:
        raise InputError(
            f"recipe '{recipe.name}' corrects for the rollout engine, but TRL's transformers generation reports no "
            "log-probs; set use_vllm=True or leave the recipe's correction out"
        )
    if parts // window * config.num_iterations == 1 and has_region(objective):
        warnings.warn(
            f"every generation is used for one optimiser step, so all ratios are 1 and the region of "
            f"'{objective.name}' does nothing; set optimizer.updates to 2 or more in the recipe, or "
            "steps_per_generation to a multiple of gradient_accumulation_steps",
            stacklevel=2,
        )


def has_region(objective: Objective) -> bool:
    """Does the objective bound the ratio?"""
    return type(objective).region is not Objective.region
