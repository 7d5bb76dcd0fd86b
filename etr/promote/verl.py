"""A run in verl's terms: Hydra overrides of its `ppo_trainer` config (read in code: verl 0.9.1).

In verl a batch size counts prompts: it multiplies `ppo_mini_batch_size` by `rollout.n` itself. Our K updates are K
passes over the whole rollout batch, so the mini batch is the whole batch and `ppo_epochs` is K.
"""

from __future__ import annotations

from etr.adapters import verl_settings
from etr.errors import InputError
from etr.llm.lora import ALPHA
from etr.promote.data import HELD_OUT, TRAIN, binary_rewards, refuse_parts
from etr.promote.job import Job, check_translated
from etr.promote.quoting import hydra_text, in_folder
from etr.promote.recipes import own_files
from etr.promote.terms import Term, Translation
from etr.promote.verl_correction import SECTION, rollout_correction

TRANSLATED = frozenset(
    (
        *("model", "task", "task_options", "reward", "steps", "prompts", "group_size", "max_new_tokens", "temperature"),
        *("seed", "dtype", "micro_batch_tokens", "gradient_checkpointing", "lora_rank", "save_every", "keep_last"),
        *("eval_items", "eval_samples", "eval_every", "track"),
    )
)
TRACKERS = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
RESERVED = (SECTION, "algorithm.norm_adv_by_std_in_grpo", f"{ACTOR}.optim", f"{ACTOR}.policy_loss")
NUMBERS = {"float32": "fp32", "bfloat16": "bf16"}
NO_CANARY = "verl does not check that the engine has the current weights; watch rollout_probs_diff in its log"
NO_CLIPPING = 1e9  # verl insists on a bound of the gradient's norm


def translate(job: Job) -> Translation:
    """All overrides of a run. Raises InputError for what verl cannot do, or would do otherwise."""
    check_translated(job, TRANSLATED)
    refuse_parts(job.config)
    check_sizes(job)
    loss = [
        _split(line) for line in verl_settings.loss_overrides(job.recipe, binary_rewards=binary_rewards(job.config))
    ]
    return Translation(
        [
            *batch(job),
            *(Term("recipe", key, value, "this recipe's loss and advantages") for key, value in loss),
            *optimizer(job),
            *sampling(job),
            *rollout_correction(job.recipe.correction),
            *places(job),
            *machine(job),
            *environment(job),
        ],
        [NO_CANARY],
        RESERVED,
    )


def check_sizes(job: Job) -> None:
    """Raise InputError for a machine or batch that verl cannot divide."""
    if job.gpus < 1:
        raise InputError("verl trains on GPUs; give --gpus, how many each node has (on a CPU, use --to llm)")
    if job.responses % job.processes:
        raise InputError(
            f"{job.config.prompts} prompts x {job.config.group_size} answers are {job.responses} answers, which "
            f"{job.processes} GPUs cannot share equally; change --prompts, --group-size, --nodes or --gpus"
        )
    if len(files := own_files(type(job.recipe.objective))) > 1:
        names = ", ".join(file.name for file in files)
        raise InputError(f"workers of verl find one file of yours, and this recipe is made of {names}; make them one")
    if "/" not in job.model:
        raise InputError(f"verl reads models from a folder or hub id (owner/name), and '{job.model}' is neither")


def batch(job: Job) -> list[Term]:
    """Batch sizes, passes and micro-batches."""
    config, updates = job.config, job.recipe.optimizer.updates
    tokens = max(config.micro_batch_tokens, job.prompt_tokens + config.max_new_tokens)
    whole = f"{config.prompts} prompts = {job.responses} answers"
    return [
        Term(f"prompts {config.prompts}", "data.train_batch_size", config.prompts, "prompts of a rollout batch"),
        Term(f"group_size {config.group_size}", f"{ROLLOUT}.n", config.group_size, "answers to each prompt, G"),
        Term("K passes over the whole batch", f"{ACTOR}.ppo_mini_batch_size", config.prompts,
             f"prompts of an optimiser step (verl multiplies by n): {whole}, the whole batch"),
        Term(f"optimizer.updates {updates}", f"{ACTOR}.ppo_epochs", updates, "optimiser steps on each batch, K"),
        Term("", f"{ACTOR}.shuffle", False, "a step holds the whole batch, so that order means nothing"),
        Term("micro-batches by tokens", f"{ACTOR}.use_dynamic_bsz", True, "micro-batches are filled up to a length"),
        Term(f"micro_batch_tokens {config.micro_batch_tokens}", f"{ACTOR}.ppo_max_token_len_per_gpu", tokens,
             "tokens of a forward pass; any value gives the same gradient"),
        Term("the step's denominator", "", "global_batch_info",
             "each micro-batch is divided by the count of the whole step, over all GPUs"),
    ]  # fmt: skip


def optimizer(job: Job) -> list[Term]:
    """AdamW with a constant learning rate."""
    settings, name = job.recipe.optimizer, f"{ACTOR}.optim"
    if settings.method != "adam":
        raise InputError(f"optimizer.method is {settings.method}, and verl is given AdamW only; leave it at adam")
    if settings.micro_batches is not None:
        raise InputError("optimizer.micro_batches is for toys; verl fills micro-batches up to --micro-batch-tokens")
    bound = NO_CLIPPING if settings.max_grad_norm is None else settings.max_grad_norm
    return [
        Term(f"optimizer.lr {settings.lr or 'default'}", f"{name}.lr", job.lr, "learning rate"),
        Term("constant", f"{name}.lr_scheduler_type", "constant", "no warm-up, no decay"),
        Term(f"optimizer.weight_decay {settings.weight_decay:g}", f"{name}.weight_decay", settings.weight_decay, ""),
        Term(f"optimizer.max_grad_norm {settings.max_grad_norm}", f"{name}.clip_grad", bound,
             "bound of the gradient's norm"),
    ]  # fmt: skip


def sampling(job: Job) -> list[Term]:
    """What is sampled, and that nothing bends the distribution."""
    config = job.config
    evaluated = max(config.eval_samples, 1)
    return [
        Term(f"temperature {config.temperature:g}", f"{ROLLOUT}.temperature", config.temperature,
             "of sampling and of all log-probs"),
        Term("top-p off", f"{ROLLOUT}.top_p", 1.0, "ratios are only right where nothing is cut off"),
        Term("top-k off", f"{ROLLOUT}.top_k", -1, ""),
        Term(f"max_new_tokens {config.max_new_tokens}", "data.max_response_length", config.max_new_tokens,
             "longest answer"),
        Term(f"prompt_tokens {job.prompt_tokens}", "data.max_prompt_length", job.prompt_tokens, "longest prompt"),
        Term("", "data.truncation", "error", "a longer prompt stops the run; it is not cut"),
        Term("engine's log-probs", f"{ROLLOUT}.calculate_log_probs", True, "the third policy, for the mismatch"),
        Term(f"eval_samples {config.eval_samples}", f"{ROLLOUT}.val_kwargs.n", evaluated, "answers to each of them"),
        Term("", f"{ROLLOUT}.val_kwargs.do_sample", True, "held-out answers are sampled"),
        Term("", f"{ROLLOUT}.val_kwargs.temperature", config.temperature, "as in training"),
        Term(f"seed {config.seed}", "data.seed", config.seed, "order of the prompts"),
    ]  # fmt: skip


def places(job: Job) -> list[Term]:
    """Model, data, reward, and what is written where."""
    config = job.config
    reward = "reward.custom_reward_function"
    held_out = HELD_OUT if config.eval_items else TRAIN
    return [
        Term(f"model {config.model}", "actor_rollout_ref.model.path", hydra_text(job.model),
             "a folder that all nodes see"),
        Term(f"task {config.task}", "data.train_files", in_folder(f"data/{TRAIN}.parquet"),
             "written by prepare_data.py"),
        Term(f"eval_items {config.eval_items}", "data.val_files", in_folder(f"data/{held_out}.parquet"),
             "questions that are never trained on" if config.eval_items else "verl wants a file; it is not evaluated"),
        Term(f"reward {config.reward}", f"{reward}.path", "pkg://etr.adapters.verl.rewards", "our own grading"),
        Term("", f"{reward}.name", "compute_score", ""),
        Term("record", f"+{ACTOR}.policy_loss.record", in_folder("first_batch.safetensors"), "for `etr replay`"),
        Term("", "trainer.default_local_dir", in_folder("checkpoints"), "checkpoints"),
        Term("", "trainer.project_name", "etr", ""),
        Term("", "trainer.experiment_name", hydra_text(job.recipe.name), ""),
    ]  # fmt: skip


def machine(job: Job) -> list[Term]:
    """Steps, nodes, number formats and records."""
    config = job.config
    loggers = ["console", "file", *(TRACKERS[name] for name in config.track if name in TRACKERS)]
    every = config.eval_every or -1
    return [
        Term(f"steps {config.steps}", "trainer.total_training_steps", config.steps, "rollout batches"),
        Term("", "trainer.total_epochs", config.steps, "passes over the data, at most; the steps end the run first"),
        Term(f"nodes {job.nodes}", "trainer.nnodes", job.nodes, ""),
        Term(f"gpus {job.gpus}", "trainer.n_gpus_per_node", job.gpus, ""),
        Term("", f"{ROLLOUT}.name", "vllm", "the rollout engine"),
        Term("", f"{ROLLOUT}.tensor_model_parallel_size", 1, "an engine on each GPU; a larger model needs more"),
        Term(f"dtype {config.dtype}", f"+{ACTOR}.fsdp_config.mixed_precision.param_dtype", NUMBERS[config.dtype],
             "of the passes; the weights themselves are float32"),
        Term("", f"{ROLLOUT}.dtype", config.dtype, "of the engine"),
        Term(f"gradient_checkpointing {config.gradient_checkpointing}",
             "actor_rollout_ref.model.enable_gradient_checkpointing", config.gradient_checkpointing, ""),
        Term(f"lora_rank {config.lora_rank}", "actor_rollout_ref.model.lora_rank", config.lora_rank, "0: all weights"),
        Term("", "actor_rollout_ref.model.lora_alpha", ALPHA * config.lora_rank or ALPHA, "scale of the adapters"),
        Term(f"save_every {config.save_every}", "trainer.save_freq", config.save_every, "steps"),
        Term(f"keep_last {config.keep_last}", "trainer.max_actor_ckpt_to_keep", config.keep_last, ""),
        Term(f"eval_every {config.eval_every}", "trainer.test_freq", every, "steps; -1 for never"),
        Term("", "trainer.val_before_train", config.eval_items > 0, ""),
        Term(f"track {' '.join(config.track)}".strip(), "trainer.logger", f"[{','.join(loggers)}]", ""),
    ]  # fmt: skip


def environment(job: Job) -> list[Term]:
    """What Ray must hand to its workers: on a cluster they do not inherit the environment of the launching shell."""
    found = {
        **verl_settings.environment(job.recipe, binary_rewards=binary_rewards(job.config)),
        "ETR_RECIPE": in_folder("recipe.yaml"),
    }
    where = "+ray_kwargs.ray_init.runtime_env.env_vars"
    return [Term("", f"{where}.{name}", value, "in every worker's environment") for name, value in found.items()]


def _split(line: str) -> tuple[str, str]:
    key, _, value = line.partition("=")
    return key, value
