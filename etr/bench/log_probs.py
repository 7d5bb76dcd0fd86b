"""Log-probs and entropies with their gradient: chunked, from full logits, and Liger's fused GRPO loss on a GPU.

Each contender runs in a process of its own, so that its peak memory is its own, and all take turns.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from etr.bench import median_ratio, timed
from etr.bench.llm_process import MIB, Row, child
from etr.llm.log_probs import token_log_probs
from etr.llm.peak import Peak

ENTROPY = 0.01  # weight of the entropy in the loss
OURS, FULL, LIGER = "chunked", "full logits", "liger"
OURS_LOSS = "chunked, GRPO loss"  # what Liger computes


@dataclasses.dataclass(frozen=True)
class Head:
    """rows x length tokens of `width` hidden channels, and a head over `vocabulary`."""

    rows: int = 4
    length: int = 512
    width: int = 576
    vocabulary: int = 151_936
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    repeats: int = 2


def bench_log_probs(device: str = "cpu", tiny: bool = False, threads: int | None = None) -> dict[str, list[Row]]:
    """A table for each number format: seconds of forward and backward, peak MiB above the inputs, ratios.

    Liger computes one loss and no gradient of entropy, so it has a table of its own beside our log-probs' same loss.
    """
    size = {"rows": 2, "length": 8, "width": 16, "vocabulary": 64, "repeats": 1} if tiny else {}
    formats = ("float32", "bfloat16") if device == "cpu" else ("bfloat16",)
    tables: dict[str, list[Row]] = {}
    for dtype in formats:
        head = Head(**size, dtype=dtype, device=device, threads=threads or torch.get_num_threads())
        shape = f"[{head.rows} x {head.length}] tokens, {head.width} channels, vocabulary {head.vocabulary}, {dtype}"
        tables[f"log-probs, entropy and backward, {shape}"] = compared(head, (FULL, OURS))
        tables[f"GRPO loss and backward, {shape}"] = compared(head, (LIGER, OURS_LOSS))
    return tables


def compared(head: Head, names: tuple[str, str]) -> list[Row]:
    """A row for each contender, with ratios to the first; each in two processes in turn (A B A B)."""
    results: dict[str, list[Row]] = {name: [] for name in names}
    for _ in range(2):
        for name in names:
            results[name].append(child(name, head, "etr.bench.log_probs"))
    rows: list[Row] = []
    base = results[names[0]]
    for name, found in results.items():
        if reason := next((result["skipped"] for result in found if "skipped" in result), None):
            rows.append({"contender": name, "skipped": reason})
            continue
        seconds = [value for result in found for value in result["seconds"]]
        row = {"contender": name, "seconds": statistics.median(seconds), "peak MiB": found[0]["peak"] / MIB}
        if all("skipped" not in result for result in base):
            row["time ratio"] = median_ratio(seconds, [value for result in base for value in result["seconds"]])
            row["memory ratio"] = found[0]["peak"] / max(1, base[0]["peak"])
        rows.append(row)
    return rows


def measure(name: str, head: Head) -> Row:
    """One contender in this process: seconds of each repetition after a first one, and peak bytes above the inputs."""
    if name == LIGER and (reason := why_no_liger(head.device)):
        return {"skipped": reason}
    torch.set_num_threads(head.threads)
    device, dtype = torch.device(head.device), getattr(torch, head.dtype)
    torch.manual_seed(0)
    count = head.rows * head.length
    hidden = torch.randn(count, head.width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(head.vocabulary, head.width, device=device).mul_(head.width**-0.5).to(dtype).requires_grad_()
    tokens = torch.randint(head.vocabulary, (count,), device=device)
    advantages = torch.randn(head.rows, device=device)
    loss = contender(name, head, hidden, weight, tokens, advantages)

    def step() -> None:
        loss().backward()
        hidden.grad = weight.grad = None
        if device.type == "cuda":
            torch.cuda.synchronize()

    memory = Peak(device)
    memory.restart()
    step()
    seconds = [timed(step)() for _ in range(head.repeats)]
    return {"seconds": seconds, "peak": memory.read()}


def contender(
    name: str, head: Head, hidden: Tensor, weight: Tensor, tokens: Tensor, advantages: Tensor
) -> Callable[[], Tensor]:
    """The loss of a contender as a function of nothing."""
    each = advantages.repeat_interleave(head.length)

    def grpo() -> Tensor:
        log_probs, _ = token_log_probs(hidden, weight, tokens)
        ratio = (log_probs - log_probs.detach()).exp()
        return -torch.minimum(ratio * each, ratio.clamp(0.8, 1.2) * each).mean()

    if name == OURS_LOSS:
        return grpo
    if name == LIGER:
        return liger(head, hidden, weight, tokens, advantages)
    compute = token_log_probs if name == OURS else full_logits

    def loss() -> Tensor:
        log_probs, entropy = compute(hidden, weight, tokens)
        return (log_probs * each).mean() + ENTROPY * entropy.mean()

    return loss


def full_logits(hidden: Tensor, weight: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies as one writes them down, from logits [N, V]."""
    log_pi = F.linear(hidden, weight).float().log_softmax(-1)
    return log_pi.gather(-1, tokens[:, None])[:, 0], -(log_pi.exp() * log_pi).sum(-1)


def why_no_liger(device: str) -> str | None:
    """Why the peer is left out, or None."""
    if device != "cuda":
        return "Liger's kernels are for GPUs"
    if importlib.util.find_spec("liger_kernel") is None:
        return "liger-kernel is not installed: pip install liger-kernel"
    return None


def liger(head: Head, hidden: Tensor, weight: Tensor, tokens: Tensor, advantages: Tensor) -> Callable[[], Tensor]:
    """Liger's fused GRPO loss without a reference model, at its own settings otherwise."""
    module: Any = importlib.import_module("liger_kernel.chunked_loss")
    fused = module.LigerFusedLinearGRPOLoss(beta=0.0, use_ref_model=False, loss_type="bnpo")
    shape = (head.rows, head.length)
    mask = torch.ones(shape, device=hidden.device)

    def loss() -> Tensor:
        value: Tensor = fused(hidden.view(*shape, -1), weight, tokens.view(shape), mask, advantages)[0]
        return value

    return loss


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Head(**json.loads(sys.argv[2])))))
