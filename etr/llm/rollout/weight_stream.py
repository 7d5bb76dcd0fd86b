"""Weights as bytes over a socket: what goes first, who may read them, and how both ends know the shapes.

The receiver connects and sends a token that it was told over HTTP; the sender answers with the bytes of each tensor one
after another, nothing between them. Names, formats and shapes travelled over HTTP before. No pickle, no second copy.
"""

from __future__ import annotations

import hmac
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from etr.llm.rollout.base import EngineError

TOKEN_BYTES = 32


class Described(NamedTuple):
    """Name, number format and shape of a tensor on its way."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Listener:
    """The sender's end: a port that gives weights to those who know `token`.

    address: this host as the server sees it; that interface alone is listened on.
    """

    def __init__(self, address: str, port: int = 0) -> None:
        """Raises OSError where the port cannot be had."""
        self.token = secrets.token_hex(TOKEN_BYTES // 2)
        self._socket = socket.create_server((address, port), family=family(address))
        self._socket.settimeout(0.2)
        self.port: int = self._socket.getsockname()[1]

    def accept(self, count: int, failed: Callable[[], bool], timeout: float) -> list[socket.socket]:
        """`count` receivers; strangers are hung up on. Raises EngineError when `failed` says that none will come."""
        found: list[socket.socket] = []
        while len(found) < count:
            try:
                connection, _ = self._socket.accept()
            except TimeoutError:
                if failed():
                    close(found)
                    raise EngineError("the vllm server did not come for its weights") from None
                continue
            connection.settimeout(timeout)
            if hmac.compare_digest(read(connection, TOKEN_BYTES) or b"", self.token.encode()):
                found.append(connection)
            else:
                connection.close()
        return found

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


def send(connections: Sequence[socket.socket], weights: Iterable[Tensor]) -> None:
    """The bytes of each tensor to every receiver, one tensor after another."""
    for tensor in weights:
        data = as_bytes(tensor.detach().cpu().contiguous()).numpy().data
        for connection in connections:
            connection.sendall(data)


def receive(address: str, port: int, token: str, described: Sequence[Described], timeout: float) -> Iterator[Tensor]:
    """The tensors that a `Listener` sends, each in memory of its own on the CPU; ConnectionError when it hangs up."""
    with socket.create_connection((address, port), timeout=timeout) as connection:
        connection.sendall(token.encode())
        for name, dtype, shape in described:
            tensor = torch.empty(shape, dtype=dtype)
            place, done = as_bytes(tensor).numpy().data, 0
            while done < len(place):
                count = connection.recv_into(place[done:])
                if not count:
                    raise ConnectionError(f"the trainer hung up before {name} was whole")
                done += count
            yield tensor


def as_bytes(tensor: Tensor) -> Tensor:
    """The memory of a contiguous tensor, uint8 `[bytes]`."""
    return tensor.view(-1).view(torch.uint8)


def read(connection: socket.socket, count: int) -> bytes | None:
    """Exactly so many bytes, or None when fewer come."""
    found = b""
    try:
        while len(found) < count:
            part = connection.recv(count - len(found))
            if not part:
                return None
            found += part
    except OSError:
        return None
    return found


def close(connections: Iterable[socket.socket]) -> None:
    """Hang up."""
    for connection in connections:
        connection.close()


def own_address(server: str, port: int) -> str:
    """This host's address on the way to a server: $ETR_WEIGHTS_ADDRESS, else that of a connection to it."""
    named = os.environ.get("ETR_WEIGHTS_ADDRESS")
    if named:
        return named
    with socket.create_connection((server, port), timeout=10) as connection:
        return str(connection.getsockname()[0])


def family(address: str) -> socket.AddressFamily:
    """IPv4 or IPv6."""
    return socket.getaddrinfo(address, None)[0][0]
