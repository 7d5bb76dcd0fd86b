"""The run to be planned, and what of it does not depend on speed or memory."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from etr.errors import InputError
from etr.llm.config import CHOICES, check_choice
from etr.plan.devices import Device

BYTES = {"float32": 4, "bfloat16": 2}  # of a weight in the number formats of `etr train`
ONE_OR_MORE = ("gpus", "prompts", "group_size", "prompt_tokens", "response_tokens", "updates", "steps",
               "micro_batch_tokens")  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run on a cluster. The defaults are those of a small reasoning run."""

    # Model: a size (7b: Qwen2.5, 8b: Qwen3), a name such as qwen3-32b or llama3.1-70b, or a folder with a config.json.
    model: str = "7b"
    # GPUs in all.
    gpus: int = 8
    # Kind of GPU: a100, h100, h800, h200, h20, gh200, b200, gb200, l40s.
    gpu: str = "h100"
    # Prompts in each rollout batch.
    prompts: int = 128
    # Completions sampled for each prompt.
    group_size: int = 8
    # Mean length of a prompt, in tokens.
    prompt_tokens: int = 256
    # Mean length of a completion, in tokens.
    response_tokens: int = 1024
    # Longest completion of a batch, in tokens; 0: all are equally long. The engine waits for the longest one.
    longest_tokens: int = 0
    # Passes of the optimiser over each rollout batch (optimizer.updates of etr train, ppo_epochs of verl).
    updates: int = 1
    # Forward passes before the updates: 1 for the old log-probs, 2 with a reference policy.
    scoring_passes: int = 1
    # Train on each prompt once per group, as etr train does; other trainers read it with every completion.
    prompts_once: bool = False
    # Rollout batches.
    steps: int = 1000
    # Share of the GPUs that only sample while the others train on the batch before; 0: all do both in turn.
    engine_share: float = 0.0
    # GPUs of one copy of the engine; 0: as few as hold it.
    tensor_parallel: int = 0
    # Tokens of one forward pass of an update on one GPU.
    micro_batch_tokens: int = 8192
    # Recompute activations in the backward pass: less memory, a third more computing.
    gradient_checkpointing: bool = True
    # Keep the trainer's state in main memory while the same GPUs sample.
    offload: bool = False
    # Number format of the weights: bfloat16 with float32 masters, or float32.
    dtype: str = "bfloat16"
    # Adam's two moments: float32, 8bit or offload.
    optimizer_state: str = "float32"
    # Rank of LoRA adapters; 0 trains all weights.
    lora_rank: int = 0

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for name in ONE_OR_MORE:
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; give at least 1")
        for name in ("longest_tokens", "scoring_passes", "tensor_parallel", "lora_rank"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; give 0 or more")
        for name in set(CHOICES) & {field.name for field in dataclasses.fields(self)}:
            check_choice(name, getattr(self, name))
        if 0 < self.longest_tokens < self.response_tokens:
            raise InputError(
                f"longest_tokens is {self.longest_tokens} and response_tokens, the mean, is {self.response_tokens}; "
                "the longest is at least the mean"
            )
        if not 0 <= self.engine_share < 1:
            raise InputError(f"engine_share is {self.engine_share}; give a share of the GPUs from 0 to below 1")
        if self.engine_share and self.gpus < 2:
            raise InputError("engine_share needs at least 2 GPUs, one to sample and one to train; drop it for one GPU")
        if self.tensor_parallel > self.engine_gpus:
            raise InputError(
                f"tensor_parallel is {self.tensor_parallel}, and only {self.engine_gpus} GPUs sample; give at most that"
            )

    @property
    def sequences(self) -> int:
        """Completions of a batch."""
        return self.prompts * self.group_size

    @property
    def longest(self) -> int:
        """The longest completion in tokens."""
        return self.longest_tokens or self.response_tokens

    @property
    def length(self) -> int:
        """Mean tokens of a prompt with its completion."""
        return self.prompt_tokens + self.response_tokens

    @property
    def trained_length(self) -> float:
        """Mean tokens that training reads for a completion."""
        return self.response_tokens + self.prompt_tokens / (self.group_size if self.prompts_once else 1)

    @property
    def engine_gpus(self) -> int:
        """GPUs that sample."""
        return min(self.gpus - 1, max(1, round(self.engine_share * self.gpus))) if self.engine_share else self.gpus

    @property
    def trainer_gpus(self) -> int:
        """GPUs that train."""
        return self.gpus - self.engine_gpus if self.engine_share else self.gpus

    @property
    def bytes_each(self) -> int:
        """Bytes of a weight where it is computed with."""
        return BYTES[self.dtype]


def nodes_doubled(gpus: float, device: Device) -> float:
    """How often a node has to be doubled to have so many GPUs; 0 within one node."""
    doubled, size = 0.0, float(device.node)
    while size < gpus:
        doubled += min(1.0, gpus / size - 1.0)
        size *= 2
    return doubled
