"""A run in TRL's terms: arguments of its `GRPOConfig` (read in code: TRL 1.16.0).

In TRL a batch size counts answers. Our K updates are K passes over the whole rollout batch, so all of its answers are
accumulated into one optimiser step, and `num_iterations` is K.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

import yaml

from etr.adapters import trl_settings
from etr.errors import InputError, unknown
from etr.promote.job import Job, check_translated
from etr.promote.terms import Term, Translation

TRANSLATED = frozenset(
    (
        *("model", "task", "task_options", "reward", "reward_timeout", "steps", "prompts", "group_size"),
        *("max_new_tokens", "temperature", "seed", "engine", "device", "dtype", "micro_batch_tokens"),
        *("gradient_checkpointing", "save_every", "keep_last", "eval_items", "track"),
    )
)
RESERVED = (
    *trl_settings.LOSS_ARGUMENTS,
    *("mask_truncated_completions", "warmup_steps", "warmup_ratio", "lr_scheduler_kwargs", "optim_args"),
    *("optim_target_modules", "adam_beta1", "adam_beta2", "adam_epsilon", "sync_ref_model", "auto_find_batch_size"),
    *("generation_batch_size", "num_train_epochs", "use_liger_kernel", "reward_weights", "label_smoothing_factor"),
    *("neftune_noise_alpha", "min_p", "repetition_penalty"),
)
NOT_EVALUATED = "TRL does not ask the held-out questions here; evaluate a checkpoint with `etr eval --model`"


def translate(job: Job) -> Translation:
    """All arguments of a run. Raises InputError for what TRL cannot do, or would do otherwise."""
    check_translated(job, TRANSLATED)
    if job.nodes > 1:
        raise InputError("TRL folders start on one node; for several give --to verl")
    if job.responses % job.processes:
        raise InputError(
            f"{job.config.prompts} prompts x {job.config.group_size} answers are {job.responses} answers, which "
            f"{job.processes} processes cannot share equally; change --prompts, --group-size or --gpus"
        )
    return Translation(
        [*batch(job), *fixed(job), *sampling(job), *machine(job)],
        [NOT_EVALUATED] if job.config.eval_items else [],
        RESERVED,
    )


def own_values(settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings of TRL's own from a command line, read as YAML scalars; a text `false` would count as true.

    >>> own_values({"log_completions": "false", "eval_delay": "1e-6", "run_name": "mine"})
    {'log_completions': False, 'eval_delay': 1e-06, 'run_name': 'mine'}
    """
    return {key: _value(key, text) for key, text in settings.items()}


def _value(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"--host-set {key}: '{text}' is not YAML ({' '.join(str(error).split())})") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML has no 1e-6, only 1.0e-6
        except ValueError:
            return value
    return value


def check_types(arguments: Mapping[str, Any], config: type) -> None:
    """Raise InputError for an argument that is none of `config`, a dataclass, or has a value of another type."""
    hints = typing.get_type_hints(config)
    for name, value in arguments.items():
        if name not in hints:
            raise InputError(unknown(f"argument of {config.__name__}:", name, hints))
        kinds = typing.get_args(hints[name]) or (hints[name],)
        plain = [kind for kind in kinds if kind in (bool, int, float, str, type(None))]
        if len(plain) == len(kinds) and not any(_fits(value, kind) for kind in plain):
            wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in plain)
            raise InputError(f"{config.__name__}.{name} is {value!r}, and TRL wants {wanted}; change it in trl.yaml")


def _fits(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def micro_batch(job: Job) -> int:
    """Answers of one forward pass: as many as the tokens allow, so that passes of equal size make up a process's share.

    >>> from etr.llm.config import TrainConfig
    >>> from etr.recipe import load_recipe
    >>> config = TrainConfig(prompts=4, group_size=6, max_new_tokens=100, micro_batch_tokens=1000)
    >>> micro_batch(Job(load_recipe("grpo"), "trl", config, prompt_tokens=100))  # 5 would not divide 24
    4
    """
    share = job.responses // job.processes
    most = max(1, job.config.micro_batch_tokens // (job.prompt_tokens + job.config.max_new_tokens))
    return max(size for size in range(1, min(most, share) + 1) if share % size == 0)


def batch(job: Job) -> list[Term]:
    """Batch sizes, passes and accumulation."""
    config, each = job.config, micro_batch(job)
    parts, updates = job.responses // job.processes // each, job.recipe.optimizer.updates
    whole = f"{each} x {parts} x {job.processes} processes = {job.responses} answers = {config.prompts} prompts"
    return [
        Term(f"group_size {config.group_size}", "num_generations", config.group_size, "answers to each prompt, G"),
        Term(f"micro_batch_tokens {config.micro_batch_tokens}", "per_device_train_batch_size", each,
             "answers of a forward pass; any value gives the same gradient"),
        Term("K passes over the whole batch", "gradient_accumulation_steps", parts,
             f"forward passes of an optimiser step: {whole}"),
        Term(f"prompts {config.prompts}", "steps_per_generation", parts, "forward passes of a rollout batch: the same"),
        Term(f"steps {config.steps}", "max_steps", config.steps * updates, "TRL counts optimiser steps: steps x K"),
        Term("the step's denominator", "", "etr.adapters.trl",
             "each micro-batch is divided by the count of the whole step, over all processes"),
    ]  # fmt: skip


def fixed(job: Job) -> list[Term]:
    """What the adapter says that the recipe means in TRL."""
    settings = job.recipe.optimizer
    known = {
        "num_iterations": (f"optimizer.updates {settings.updates}", "optimiser steps on each batch, K"),
        "optim": (f"optimizer.method {settings.method}", ""),
        "weight_decay": (f"optimizer.weight_decay {settings.weight_decay:g}", ""),
        "max_grad_norm": (f"optimizer.max_grad_norm {settings.max_grad_norm}", "bound of the gradient's norm; 0: none"),
        "learning_rate": (f"optimizer.lr {settings.lr or 'default'}", "learning rate"),
        "lr_scheduler_type": ("constant", "no decay"),
    }
    found = {"learning_rate": job.lr, **trl_settings.arguments(job.recipe)}
    rows = [Term(known.get(k, ("recipe", ""))[0], k, v, known.get(k, ("", ""))[1]) for k, v in found.items()]
    return [
        *rows,
        Term("", "warmup_steps", 0, "no warm-up"),
        Term("", "mask_truncated_completions", False, "an answer that was cut off counts as it is graded"),
    ]


def sampling(job: Job) -> list[Term]:
    """What is sampled, and that nothing bends the distribution."""
    config = job.config
    return [
        Term(f"temperature {config.temperature:g}", "temperature", config.temperature,
             "of sampling and of all log-probs"),
        Term("top-p off", "top_p", 1.0, "ratios are only right where nothing is cut off"),
        Term("top-k off", "top_k", 0, ""),
        Term(f"max_new_tokens {config.max_new_tokens}", "max_completion_length", config.max_new_tokens,
             "longest answer"),
        Term(f"seed {config.seed}", "seed", config.seed, ""),
        Term(f"engine {config.engine}", "use_vllm", _vllm(config.engine), "who samples"),
    ]  # fmt: skip


def machine(job: Job) -> list[Term]:
    """Number formats and records."""
    config, updates = job.config, job.recipe.optimizer.updates
    trackers = list(config.track) or "none"
    return [
        Term(f"dtype {config.dtype}", "bf16", config.dtype == "bfloat16", "number format of the passes"),
        Term(f"device {config.device}", "use_cpu", _cpu(job), ""),
        Term(f"gradient_checkpointing {config.gradient_checkpointing}", "gradient_checkpointing",
             config.gradient_checkpointing, ""),
        Term(f"save_every {config.save_every}", "save_steps", config.save_every * updates, "in optimiser steps"),
        Term(f"keep_last {config.keep_last}", "save_total_limit", config.keep_last, ""),
        Term(f"track {' '.join(config.track)}".strip(), "report_to", trackers, ""),
        Term("", "logging_steps", 1, "a row of metrics for each optimiser step"),
        Term("", "output_dir", "run", "inside of this folder"),
    ]  # fmt: skip


def _vllm(engine: str) -> bool:
    if engine not in ("auto", "transformers", "vllm"):
        raise InputError(f"--engine {engine} is not for TRL; give transformers or vllm")
    return engine == "vllm"


def _cpu(job: Job) -> bool:
    if job.config.device == "auto":
        return job.gpus == 0
    if job.config.device == "cpu" and job.gpus:
        raise InputError(f"--device cpu and --gpus {job.gpus} contradict each other; drop one")
    return job.config.device == "cpu"
