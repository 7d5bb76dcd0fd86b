"""Several processes, one run: started by torchrun, each with its share of prompts, and one loss over all of them.

    torchrun --nproc-per-node 8 -m etr train --model ...

Every rank samples and grades its own prompts. Then all ranks hold the whole rollout batch (ids, rewards, log-probs:
small tensors), so that advantages, statistics over the batch, denominators and metrics are those of one process. Only
the passes of the model are shared out, and parameters, gradients and optimizer state are sharded by FSDP2.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from etr.batch import Mean
from etr.errors import InputError

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # how long the others wait for a process that was lost


@dataclass(frozen=True)
class World:
    """This process among `size`; alone by default, where everything here does nothing."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join(device: torch.device) -> World:
        """The world that torchrun's environment describes; joins its process group at the first call."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        return World(dist.get_rank(), dist.get_world_size())

    @staticmethod
    def present() -> World:
        """The world that this process has joined already, or itself alone."""
        return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()

    @property
    def main(self) -> bool:
        """True for the one process that prints and writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This rank's contiguous part of `count` things. Raises InputError when there is not one for each rank."""
        if count < self.size:
            raise InputError(f"{count} prompts a step are fewer than {self.size} processes; raise prompts")
        return self.part(count)

    def part(self, count: int) -> slice:
        """This rank's contiguous part of `count` things, none where they are fewer than ranks; sizes differ by 1."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def together(self, action: Callable[[], T]) -> list[T]:
        """What `action` returns on every rank, in their order. An InputError of one is raised by all: none waits."""
        own: T | InputError
        try:
            own = action()
        except InputError as error:
            if self.size == 1:
                raise
            own = error
        found: list[T] = []
        for one in self.gather(own):
            if isinstance(one, InputError):
                raise own if isinstance(own, InputError) else one
            found.append(one)
        return found

    def by_main(self, action: Callable[[], T]) -> T:
        """What `action` returns, run by the main process alone, for all. An InputError of it is raised by all."""
        found: list[T | None] = self.together(lambda: action() if self.main else None)
        return found[0]  # type: ignore[return-value]  # None only where T is

    def gather_rows(self, rows: Tensor) -> Tensor:
        """The ranks' rows `[b, ...]` one after another, on this rank's device."""
        return torch.cat([part.to(rows.device) for part in self.gather(rows.cpu())]) if self.size > 1 else rows

    def total(self, sums: Mapping[str, Mean]) -> dict[str, Mean]:
        """Metric sums over all ranks. A rank that counted nothing may lack a name."""
        found: dict[str, Mean] = {}
        for part in self.gather({name: Mean(m.sum.cpu(), m.count.cpu()) for name, m in sums.items()}):
            for name, mean in part.items():
                found[name] = found[name] + mean if name in found else mean
        return found

    def idle(self, parts: Sequence[slice]) -> int:
        """Passes by which this rank has fewer than another: it must take part in all, as weights are sharded."""
        return max(self.gather(len(parts))) - len(parts)

    def agree(self, flag: bool) -> bool:
        """True when any rank says so."""
        return any(self.gather(flag))


ALONE = World()


def is_main() -> bool:
    """True for the process that prints and writes, known before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


def shard(model: Any, dtype: torch.dtype) -> None:
    """Shard float32 parameters over all ranks (FSDP2), layer by layer; the passes compute in `dtype`.

    The root's own weights stay whole after `forward`, until the backward pass: the LM head is read after it. Of a model
    with LoRA adapters the base model is the root: the rollout engine calls that one, and the trainer its wrapper.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    # Hidden states leave the root as a view (`etr.llm.prompts.hidden_states`); nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for layer in layers(model):
        fully_shard(layer, mp_policy=policy)
    fully_shard(model, mp_policy=policy, reshard_after_forward=False)


def layers(model: Any) -> Sequence[torch.nn.Module]:
    """The repeated blocks of a transformer: its largest list of modules. Raises InputError when there is none."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of layers to shard; train it in one process")
    return max(lists, key=len)  # type: ignore[arg-type]


def sharded_as(place: Any, value: Tensor) -> Tensor:
    """This rank's part of a whole tensor, sharded as `place` is; the tensor itself where that is not sharded."""
    if not hasattr(place, "placements"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, place.device_mesh, place.placements)
