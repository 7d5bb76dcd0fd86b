"""How much memory a computation would take, without taking it: the computation runs on tensors without content."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak, while its block runs.

    It sees every tensor between operations, autograd's saved ones included, but not the scratch space inside a kernel.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._add(leaf)
        return out

    def restart(self) -> int:
        """Forget the peak so far; returns what is alive now."""
        self.peak = self.bytes
        return self.bytes

    def _add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()  # the same Python object for as long as the storage lives
        key = id(storage)
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.bytes += self._sizes[key]
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.bytes -= self._sizes.pop(key)


@contextmanager
def imagined() -> Iterator[Live]:
    """Inside the block tensors have shapes and no content, and the `Live` that is given counts what they would hold.

    They pretend to be on the processor, whose attention keeps no matrix of scores, like the one of a GPU.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    live = Live()
    with FakeTensorMode(), live:
        yield live
