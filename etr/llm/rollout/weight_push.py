"""How weights get into a vLLM server: over TCP or NCCL by vLLM's own weight-transfer API, or through a shared folder.

The server says which: it was started with `--weight-transfer-config '{"backend": ...}'`, or without.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
from torch import Tensor

from etr.errors import InputError
from etr.llm.rollout import vllm_compat
from etr.llm.rollout.base import EngineError
from etr.llm.rollout.server_http import START, Server
from etr.llm.rollout.vllm_plugin import TCP
from etr.llm.rollout.weight_stream import Described, Listener, close, own_address, send

Weights = Iterable[tuple[str, Tensor]]


class Push(Protocol):
    """A way for weights to go."""

    def send(self, weights: Weights, version: int) -> None:
        """All weights, in the order and shapes of the model. Raises EngineError or InputError where they fail."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def choose_push(server: Server, described: Sequence[Described], device: torch.device) -> Push:
    """The way that the server was started for. Raises InputError for one that the trainer cannot go."""
    backend = server.weight_backend()
    if backend is None:
        return FolderPush(server)
    if backend == TCP:
        return TcpPush(server, described)
    if backend == "nccl" and device.type == "cuda" and vllm_compat.installed():
        return NcclPush(server, described)
    reason = "for that the trainer needs a GPU and vLLM too" if backend == "nccl" else f"etr sends by {TCP} or nccl"
    raise InputError(
        f"the vllm server at {server.address} takes weights by {backend}; {reason}. Start it with: {START}"
    )


class FolderPush:
    """A file in a folder that both sides see: $ETR_WEIGHTS_FOLDER, else memory (/dev/shm), else the system's own."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def send(self, weights: Weights, version: int) -> None:
        """Write a checkpoint, and let every worker read it."""
        from safetensors.torch import save_file

        shared = os.environ.get("ETR_WEIGHTS_FOLDER") or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        with tempfile.TemporaryDirectory(prefix="etr-weights-", dir=shared) as folder:
            os.chmod(folder, 0o755)  # the server may run as another user
            whole = {name: tensor.detach().cpu().clone() for name, tensor in weights}
            save_file(whole, Path(folder) / "model.safetensors")
            body = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            self.server.ask("/collective_rpc", body)

    def close(self) -> None:
        """Nothing is held."""


class TcpPush:
    """Every worker of the server connects to the trainer, once for each version."""

    def __init__(self, server: Server, described: Sequence[Described]) -> None:
        """Raises EngineError where this host has no port for it."""
        self.server, self.described = server, tuple(described)
        try:
            address = reachable_address(server)
            self.listener = Listener(address)
        except OSError as error:
            raise EngineError(
                f"weights for the vllm server at {server.address} have no way out of this host ({error}); set "
                "ETR_WEIGHTS_ADDRESS to an address of it that the server can reach"
            ) from error
        self.workers = server.workers()
        server.init_weight_transfer_engine(
            {"address": address, "port": self.listener.port, "token": self.listener.token}
        )

    def send(self, weights: Weights, version: int) -> None:
        """Stream the bytes while the workers load them."""
        server = self.server
        server.start_weight_update()
        with ThreadPoolExecutor(1) as pool:
            self._stream(pool.submit(server.update_weights, announced(self.described)), weights)
        server.finish_weight_update(str(version))

    def _stream(self, answer: Future[None], weights: Weights) -> None:
        connections: list[Any] = []
        try:
            connections += self.listener.accept(self.workers, answer.done, self.server.timeout)
            send(connections, (tensor for _, tensor in in_order(weights, self.described)))
        except (OSError, EngineError) as error:
            close(connections)
            answer.result()  # the server's own words, where it has any
            raise EngineError(f"the vllm server at {self.server.address} broke off the weights: {error}") from error
        finally:
            close(connections)
        answer.result()

    def close(self) -> None:
        """Stop listening."""
        self.listener.close()


class NcclPush:
    """vLLM's own trainer engine for NCCL: GPU to GPU."""

    def __init__(self, server: Server, described: Sequence[Described]) -> None:
        self.server, self.described = server, tuple(described)
        self._weights: Weights = ()
        self._engine = self._failing(vllm_compat.nccl_sender, server, self, reachable_address(server), server.workers())

    def metadata(self) -> tuple[Described, ...]:
        """What an iteration yields, as vLLM's `WeightSource` has it."""
        return self.described

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return in_order(self._weights, self.described)

    def send(self, weights: Weights, version: int) -> None:
        """Broadcast from this process to every worker."""
        self._weights = weights
        try:
            self._failing(self._engine.send_weights)
        finally:
            self._weights = ()
        self.server.ask("/update_weight_version", {"new_version": str(version)})

    def close(self) -> None:
        """Leave the group."""
        self._engine.shutdown()

    def _failing(self, action: Any, *arguments: Any) -> Any:
        try:
            return action(*arguments)
        except InputError:
            raise
        except Exception as error:  # NCCL and vLLM fail in many ways, none of them with a class of its own
            raise EngineError(
                f"weights did not reach the vllm server at {self.server.address} over nccl ({type(error).__name__}: "
                f"{error}); start it with: {START}"
            ) from error


def announced(described: Sequence[Described]) -> dict[str, list[Any]]:
    """Names, formats and shapes as vLLM's dense backends take them."""
    return {
        "names": [one.name for one in described],
        "dtype_names": [str(one.dtype).removeprefix("torch.") for one in described],
        "shapes": [list(one.shape) for one in described],
    }


def in_order(weights: Weights, described: Sequence[Described]) -> Iterator[tuple[str, Tensor]]:
    """The weights in the format in which they were announced. Raises InputError where they are others."""
    expected = iter(described)
    for name, tensor in weights:
        one = next(expected, None)
        if one is None or (name, tuple(tensor.shape)) != (one.name, one.shape):
            announced_as = "nothing more" if one is None else f"{one.name} {list(one.shape)}"
            raise InputError(
                f"{announced_as} was announced to the vllm server, but the model gave {name} {list(tensor.shape)}; "
                "push what exported_weights(model) yields"
            )
        yield name, tensor.to(one.dtype)


def reachable_address(server: Server) -> str:
    """This host's address on the way to the server."""
    parts = urlsplit(server.address)
    return own_address(str(parts.hostname), parts.port or (443 if parts.scheme == "https" else 80))
