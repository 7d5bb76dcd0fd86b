"""What a head makes of fixed hidden states: the one part of a model that fixed sequences cannot see by itself.

A score of a sequence mixes the head with all layers before it. Where only the head is old, an engine's scores move with
the layers, and in bfloat16 they stay within what other kernels change. The head alone is one product, that a device
repeats bit for bit.
"""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

ROWS = 4


@runtime_checkable
class ShowsHead(Protocol):
    """An engine whose head can be asked alone."""

    def head_digest(self) -> str | None:
        """A digest of the logits of fixed hidden states; None where this engine cannot be asked after all."""
        ...


def fixed_hidden(width: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The same hidden states in every process, `[ROWS, width]`, of the size that a last norm gives."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(ROWS, width, generator=generator).to(device, dtype)


@torch.no_grad()
def own_logits(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """What the trainer's head `[V, H]` makes of them in the format of the passes, `[ROWS, V]`."""
    return fixed_hidden(weight.shape[1], dtype, weight.device) @ weight.to(dtype).T


@torch.no_grad()
def vllm_digest(model: Any) -> str:
    """What the head that a vLLM model samples with makes of them: `compute_logits`, packed copies and all."""
    some = next(model.parameters())
    logits = model.compute_logits(fixed_hidden(model.config.get_text_config().hidden_size, some.dtype, some.device))
    if logits is None:  # a worker that holds no part of the head
        return ""
    return hashlib.sha256(logits.float().cpu().contiguous().numpy().tobytes()).hexdigest()
