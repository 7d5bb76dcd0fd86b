"""Runs inside a vLLM worker, on a CPU or a GPU: weights that come over TCP from the trainer, and a look at the head.

Written after vLLM's own NCCL engine (vllm/distributed/weight_transfer/nccl_engine.py, 0.32): the same three calls for
an update and the same layerwise reload, which unpacks, loads and packs again what a CPU build keeps packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from etr.llm.rollout.head import vllm_digest
from etr.llm.rollout.weight_stream import Described, receive

# Not by `import`: types are checked with vLLM and without, and must be the same.
base: Any = import_module("vllm.distributed.weight_transfer.base")
reload: Any = import_module("vllm.model_executor.model_loader.reload")
TIMEOUT = 600.0  # seconds without a byte


@dataclass
class TcpInitInfo:
    """Where the trainer listens, and the word that opens its door."""

    address: str
    port: int
    token: str


@dataclass
class TcpUpdateInfo:
    """What comes next, in this order; as in vLLM's NCCL backend."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class TcpWeightTransferEngine(base.WeightTransferEngine):  # type: ignore[misc]
    """The receiving end. Every worker gets all weights whole, and takes its own part of them."""

    init_info_cls = TcpInitInfo
    update_info_cls = TcpUpdateInfo
    source: TcpInitInfo | None = None

    def init_transfer_engine(self, init_info: TcpInitInfo) -> None:
        """Note where the weights will come from; a new trainer takes the place of an old one."""
        self.source = init_info

    def start_weight_update(self) -> None:
        """Make the layers ready to be loaded anew."""
        reload.initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """Pack what came, and put it to use."""
        reload.finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive, and wait for the accelerator where there is one."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TcpUpdateInfo) -> None:
        """Load the tensors while they arrive. Raises RuntimeError before an `init_transfer_engine`."""
        if self.source is None:
            raise RuntimeError("etr_tcp was not told where its weights come from: call init_weight_transfer_engine")
        columns = zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        described = [Described(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in columns]
        source = self.source
        tensors = receive(source.address, source.port, source.token, described, TIMEOUT)
        self.model.load_weights((name, tensor) for (name, _, _), tensor in zip(described, tensors, strict=True))

    def shutdown(self) -> None:
        """Forget the trainer."""
        self.source = None


class HeadProbe:
    """Mixed into the worker by `--worker-extension-cls`, so that the trainer can ask for it by name."""

    model_runner: Any

    def etr_head_digest(self) -> str:
        """A digest of what this worker's head makes of fixed hidden states."""
        return vllm_digest(self.model_runner.get_model())
